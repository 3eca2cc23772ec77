"""`warmscale mup explain`: every group of parameters, its factors and the reason."""

from argparse import Namespace

from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb

RULES = ("completep", "mup", "standard")
COLUMNS = ("init std", "forward", "lr", "weight decay", "eps", "lr (Muon)")


def add_arguments(parser: Parser) -> None:
    """Add the model and its base."""
    parser.add_argument("model", metavar="MODEL", help="a folder, a config.json or a Hub id; no weights are read")
    parser.add_argument("--base", metavar="MODEL", help="the model that was tuned; a muP model names its own")
    parser.add_argument(
        "--rule", choices=RULES, metavar="R", help=f"with --base: {', '.join(RULES)}; completep by default"
    )


def run(arguments: Namespace) -> None:
    """Print the table, each row with its reason."""
    from hf_warmscale.cli.pretrained import load_config
    from hf_warmscale.mup import Parametrization, mup_table

    config = load_config(arguments.model)
    own_base = getattr(config, "mup", None) is not None
    if own_base == (arguments.base is not None):
        raise ValueError(
            f"{arguments.model} brings its own base and rule along; leave --base out."
            if own_base
            else f"{arguments.model} has no mup entry; name the model that was tuned with --base."
        )
    table = mup_table(
        config,
        base_config=load_config(arguments.base) if arguments.base else None,
        parametrization=Parametrization(rule=arguments.rule or "completep") if arguments.base else None,
    )
    show([explain(row.cells()) for row in table], title="What each group is multiplied by, and why")


def explain(cells: dict[str, object]) -> dict[str, object]:
    """Return one row of the printed table: three columns, which fit any terminal."""
    tensors = f"\ntensors: {cells['tensors']}" if cells["tensors"] else ""
    factors = "\n".join(f"{name}: {cells[name]}" for name in COLUMNS if cells[name] is not None)
    return {"parameters": f"{cells['role']}{tensors}", "factors": factors, "why": cells["reason"]}


EXPLAIN = Verb(
    name="explain",
    summary="print the rule table of a model, one reason a row",
    description="Print what each group of parameters is multiplied by. σ, η, λ and ε are the init std, learning rate, "
    "weight decay and eps that were tuned at the base shape; m_N and m_L are how much wider and deeper the model is.",
    add_arguments=add_arguments,
    run=run,
)
