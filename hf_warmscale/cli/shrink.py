"""`warmscale shrink`: a smaller model from a larger one."""

from argparse import Namespace
from pathlib import Path

from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.show import show
from hf_warmscale.cli.sizes import add_sizes, chosen_sizes
from hf_warmscale.cli.verb import Verb


def add_arguments(parser: Parser) -> None:
    """Add source, output, sizes and calibration text."""
    parser.add_argument("source", metavar="SOURCE", help="a model folder or a Hub id")
    parser.add_argument("output", metavar="OUTPUT", help="a new folder for the smaller model")
    add_sizes(parser)
    how = parser.add_argument_group("how", "Without sizes, the growth of a grown model is undone.")
    how.add_argument(
        "--calibration",
        nargs="+",
        metavar="FILE",
        help="plain text files on which to measure importance; a short built-in text by default",
    )
    how.add_argument("--keep-growth", action="store_true", help="do not undo a growth by its receipt")


def run(arguments: Namespace) -> None:
    """Shrink, then show the sizes before and after."""
    from hf_warmscale.checkpoints import refuse_existing
    from hf_warmscale.resize import shrink_checkpoint

    refuse_existing(arguments.output)
    receipt = shrink_checkpoint(
        arguments.source,
        arguments.output,
        **chosen_sizes(arguments),
        calibration=read_texts(arguments.calibration) if arguments.calibration else None,
        undo_growth=not arguments.keep_growth,
    )
    rows: list[dict[str, object]] = [
        {"": axis, "source": receipt.source_sizes[axis], "shrunk": size}
        for axis, size in receipt.sizes.items()
        if size != receipt.source_sizes[axis]
    ]
    rows.append({"": "parameters", "source": receipt.source_parameters, "shrunk": receipt.parameters})
    how = (
        "by the receipt of its growth"
        if receipt.how == "receipt"
        else "to the most important coordinates on calibration text"
    )
    show(rows, title=f"Shrunk {how}")
    if receipt.verification is not None:
        seen = receipt.verification
        print(
            f"Measured on {seen.tokens} tokens: largest logit difference {seen.max_abs_logit_difference:.2g}, "
            f"KL {seen.kl_divergence:.2g} nats."
        )
    following = ["warmscale", "train", "CONFIG.yaml", "--model_name_or_path", arguments.output]
    show([], written=[arguments.output], then=following)


def read_texts(paths: list[str]) -> list[str]:
    """Read plain text files.

    Raises:
        ValueError: if one is not UTF-8 text.
        FileNotFoundError: if one is not there.
    """
    texts = []
    for path in paths:
        try:
            texts.append(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text; calibrate on plain text files.") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no calibration file {path}.") from error
    return texts


SHRINK = Verb(
    name="shrink",
    summary="make a smaller model from a larger one",
    description="Undo a growth, or select the most important coordinates and blocks. The result loads with "
    "AutoModelForCausalLM; shrink_receipt.json in it records the shrink.",
    add_arguments=add_arguments,
    run=run,
)
