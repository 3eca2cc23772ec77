"""`warmscale average`: average the constant phase of a run, instead of a decay."""

from argparse import Namespace

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb
from hf_warmscale.options import AVERAGES


def add_arguments(parser: Parser) -> None:
    """Add the run and the weights of its checkpoints."""
    parser.add_argument("average_of", metavar="RUN", help="the output_dir of warmscale train")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder for the model")
    parser.add_argument("--average", choices=AVERAGES, default="lawa", metavar="A", help=", ".join(AVERAGES))
    parser.add_argument("--last", type=positive_int, metavar="N", help="only the latest N checkpoints")


def run(arguments: Namespace) -> None:
    """Average, then show the weights."""
    from hf_warmscale.training.averaging import average_run

    receipt = average_run(arguments.average_of, arguments.output, average=arguments.average, last=arguments.last)
    rows = [
        {"checkpoint": given.source, "step": given.step, "weight": weight}
        for given, weight in zip(receipt.inputs, receipt.weights, strict=True)
    ]
    following = ["warmscale", "push", arguments.output, "REPO_ID", "--private"]
    show(rows, title=f"Averaged with {arguments.average}", written=[arguments.output], then=following)


AVERAGE = Verb(
    name="average",
    summary="average the constant phase of a run, in place of a decay",
    description="Average the checkpoints that a run saved at a constant learning rate: all (swa), the latest five "
    "(lawa), an exponential moving average (ema), or the merge equivalent to a decay of the given shape (wsm-...). "
    "No evaluation data are needed.",
    example="warmscale average continued --output averaged --average wsm-1-sqrt",
    add_arguments=add_arguments,
    run=run,
)
