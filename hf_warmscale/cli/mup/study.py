"""What `mup check` and `mup transfer` share: a model, tokens, sizes, a folder."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any, Literal

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.options import RULES

if TYPE_CHECKING:
    from hf_warmscale.mup import MupConfig
    from hf_warmscale.tuning import ProxyTask


def add_study(parser: Parser, *, steps: int, rules: tuple[str, ...]) -> None:
    """Add what every study names."""
    parser.add_argument("model", metavar="MODEL", help="a muP model: a folder, a config.json or a Hub id")
    parser.add_argument("--data", required=True, metavar="PACKED", help="what warmscale data pack made")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="results; an interrupted study continues from there"
    )
    sizes = parser.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--widths", type=positive_int, nargs="+", metavar="N", help="hidden sizes, the smallest first")
    sizes.add_argument("--depths", type=positive_int, nargs="+", metavar="N", help="numbers of layers")
    parser.add_argument(
        "--rules", choices=RULES, nargs="+", default=rules, metavar="R", help=f"of {', '.join(RULES)}; by default two"
    )
    parser.add_argument("--steps", type=positive_int, default=steps, metavar="N", help=f"of a run; {steps} by default")
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="rows; 8 by default")
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="runs of each kind; 3 by default")
    parser.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="runs at a time; 1 by default")


def axis_of(arguments: Namespace) -> Literal["width", "depth"]:
    """Return what grows."""
    return "width" if arguments.widths is not None else "depth"


def load_mup_config(name: str) -> "MupConfig":
    """Load the config of a muP model.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it has no base shape.
    """
    from hf_warmscale.checkpoints import load_config
    from hf_warmscale.mup import MupConfig, is_mup

    config = load_config(name)
    if not is_mup(config):
        raise ValueError(f"{name} has no mup entry with its base shape; make the model with MupConfig.")
    return MupConfig.from_dict(config.to_dict())


def make_task(arguments: Namespace, config: "MupConfig", **settings: Any) -> "ProxyTask":
    """Return the task on the packed rows; the last of them are held out.

    Raises:
        FileNotFoundError: if there are no packed data.
        ValueError: if they hold tokens that the model does not know, or the model cannot have one of the sizes.
    """
    from hf_warmscale.training.data.packing import load_packed
    from hf_warmscale.tuning import ProxyTask, ladder

    ladder(config, axis_of(arguments), arguments.widths or arguments.depths)  # refuses sizes that do not fit
    rows = load_packed(arguments.data).select_columns(["input_ids"]).with_format("numpy")
    largest = max(max(ids.max() for ids in batch["input_ids"]) for batch in rows.iter(batch_size=1_000))
    if largest >= config.vocab_size:
        raise ValueError(
            f"{arguments.data} holds the token {largest}, and the model knows {config.vocab_size}; pack the text "
            "with the model's tokenizer."
        )
    return ProxyTask(arguments.data, batch_size=arguments.batch_size, **settings)
