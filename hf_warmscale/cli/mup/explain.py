"""`warmscale mup explain`: every group of parameters, its factors and the reason."""

from argparse import Namespace
from typing import TYPE_CHECKING

from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb
from hf_warmscale.options import RULES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

COLUMNS = ("init", "forward", "lr", "weight decay", "eps", "lr (Muon)", "weight decay (Muon)", "eps (Muon)")
LEGEND = """\
σ, η, λ, ε   init std, learning rate, weight decay and eps that were tuned at the base shape
m_N, m_L     how much wider and deeper the model is
m_in, m_out  the same of what a matrix sums over, and of what it writes
A gain starts at the value of init, a matrix at N(0, init); what has no Muon lines stays with AdamW.
The lines for Muon hold for updates of spectral norm 1: muon_param_groups takes out the shape factor of torch's own."""


def add_arguments(parser: Parser) -> None:
    """Add the model and its base."""
    parser.add_argument("model", metavar="MODEL", help="a folder, a config.json or a Hub id; no weights are read")
    parser.add_argument("--base", metavar="MODEL", help="the model that was tuned; a muP model names its own")
    parser.add_argument(
        "--rule", choices=RULES, metavar="R", help=f"with --base: {', '.join(RULES)}; completep by default"
    )


def run(arguments: Namespace) -> None:
    """Print the table, each row with its reason."""
    from hf_warmscale.checkpoints import load_config
    from hf_warmscale.mup import Parametrization, is_mup, mup_table

    config = load_config(arguments.model)
    own_base = is_mup(config)
    if own_base == (arguments.base is not None):
        raise ValueError(
            f"{arguments.model} has a base and a rule of its own; remove --base."
            if own_base
            else f"{arguments.model} has no mup entry; name the model that was tuned with --base."
        )
    if own_base and arguments.rule:
        raise ValueError(f"{arguments.model} has a rule of its own; remove --rule.")
    base = load_config(arguments.base) if arguments.base else None
    parametrization = Parametrization(rule=arguments.rule or "completep") if base else None
    table = mup_table(config, base_config=base, parametrization=parametrization)
    width, depth = growth(config, base)
    rule = config.mup.get("rule", "completep") if own_base else arguments.rule or "completep"
    show(
        [explain(row.cells()) for row in table],
        title=f"{rule} at m_N = {width:g} times the width and m_L = {depth:g} times the depth of the base",
    )
    print(LEGEND)


def growth(config: "PreTrainedConfig", base: "PreTrainedConfig | None") -> tuple[float, float]:
    """Return how much wider and deeper a model is than the base it brings along, or the one that is named."""
    if base is not None:
        return config.hidden_size / base.hidden_size, config.num_hidden_layers / base.num_hidden_layers
    width, depth = config.mup["base_hidden_size"], config.mup.get("base_num_hidden_layers", config.num_hidden_layers)
    return config.hidden_size / width, config.num_hidden_layers / depth


def explain(cells: dict[str, object]) -> dict[str, object]:
    """Return one row of the printed table: three columns, which fit any terminal."""
    tensors = f"\ntensors: {cells['tensors']}" if cells["tensors"] else ""
    factors = "\n".join(f"{name}: {cells[name]}" for name in COLUMNS if cells[name] is not None)
    return {"parameters": f"{cells['role']}{tensors}", "factors": factors, "why": cells["reason"]}


EXPLAIN = Verb(
    name="explain",
    summary="print the rule table of a model, one reason a row",
    description="Print what each group of parameters is multiplied by, relative to what was tuned at the base shape.",
    example="warmscale mup explain large --base HuggingFaceTB/SmolLM2-135M",
    add_arguments=add_arguments,
    run=run,
)
