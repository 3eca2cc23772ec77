"""`warmscale mup transfer`: is the best learning rate of the small model that of the large ones?"""

import math
from argparse import Namespace
from pathlib import Path

from hf_warmscale.cli.mup.study import add_study, axis_of, load_mup_config, make_task
from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb


def add_arguments(parser: Parser) -> None:
    """Add the study and the rates."""
    add_study(parser, steps=500, rules=("completep", "standard"))
    parser.add_argument(
        "--log2-lrs", type=float, nargs="+", required=True, metavar="X", help="rates 2^X to try, at least three"
    )


def run(arguments: Namespace) -> None:
    """Sweep, then show the best rate of every size and how far it drifts."""
    from hf_warmscale.tuning import lr_transfer

    config = load_mup_config(arguments.model)
    results = lr_transfer(
        config,
        make_task(arguments, config, steps=arguments.steps, warmup_steps=arguments.steps // 10),
        axis=axis_of(arguments),
        sizes=arguments.widths or arguments.depths,
        lrs=[power_of_two(exponent) for exponent in sorted(arguments.log2_lrs)],
        rules=arguments.rules,
        seeds=arguments.seeds,
        jobs=arguments.jobs,
        output=arguments.output,
    )
    output = Path(arguments.output)
    for result in results:
        show(result.rows(), title=f"{result.rule}: the best rate drifts by {result.drift:+.2f} octaves")
        if any(optimum.at_edge for optimum in result.optima):
            print("A best rate lies at an end of the grid, so the drift is not known; name more --log2-lrs.")
    show([], written=[output / "transfer.json", output / "transfer.png"])


def power_of_two(exponent: float) -> float:
    """Return 2^exponent, infinite where it is too large for a float."""
    try:
        return float(2.0**exponent)
    except OverflowError:
        return math.inf


TRANSFER = Verb(
    name="transfer",
    summary="sweep the learning rate over sizes and fit how far the best one drifts",
    description="Train every size at every learning rate and fit the best one of each, with its interval.",
    example="warmscale mup transfer mup-model --data packed --widths 64 128 256 \\\n"
    "  --log2-lrs -9 -8 -7 -6 -5 --output transfer",
    add_arguments=add_arguments,
    run=run,
    after_interrupt="finished runs are kept; run the same command again.",
)
