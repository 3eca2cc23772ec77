"""`warmscale mup export`: a muP checkpoint as a plain Llama or a stock Granite."""

from argparse import Namespace

from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb
from hf_warmscale.options import EXPORT_TARGETS


def add_arguments(parser: Parser) -> None:
    """Add source, output and family."""
    parser.add_argument("source", metavar="SOURCE", help="a muP or Granite model: a folder or a Hub id")
    parser.add_argument("output", metavar="OUTPUT", help="a new folder for the exported model")
    parser.add_argument(
        "--to", choices=EXPORT_TARGETS, default="llama", metavar="F", help="llama (default) or granite"
    )


def run(arguments: Namespace) -> None:
    """Export, then show what was folded into the weights."""
    from hf_warmscale.mup import export_checkpoint

    receipt = export_checkpoint(arguments.source, arguments.output, to=arguments.to)
    exact = "exact" if receipt.exact else "exact up to rounding"
    show(
        [{"folded into": kind, "factor": factor} for kind, factor in receipt.factors.items()],
        title=f"{receipt.tensors} tensors written as {receipt.to}, {exact}",
    )
    for limit in receipt.limits:
        print(limit)
    following = ["warmscale", "push", arguments.output, "REPO_ID", "--private"]
    show([], written=[arguments.output], then=following)


EXPORT = Verb(
    name="export",
    summary="write a muP checkpoint as a plain Llama or a stock Granite",
    description="Fold the forward multipliers into the weights. The logits stay the same; mup_factors.json beside the "
    "weights holds the factors for training it further identically.",
    example="warmscale mup export mup-model exported",
    add_arguments=add_arguments,
    run=run,
)
