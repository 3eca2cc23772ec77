"""`warmscale mup check`: does training move every activation equally far at every size?"""

from argparse import Namespace
from pathlib import Path

from hf_warmscale.cli.mup.study import add_study, axis_of, load_mup_config, make_task
from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb


def add_arguments(parser: Parser) -> None:
    """Add the study and the rate."""
    add_study(parser, steps=10, rules=("completep", "standard"))
    parser.add_argument("--lr", type=float, required=True, metavar="LR", help="at the base shape, near the best one")


def run(arguments: Namespace) -> None:
    """Run the coordinate check, then show the slopes that fail and the verdict of each rule."""
    from hf_warmscale.tuning import coordinate_check

    config = load_mup_config(arguments.model)
    results = coordinate_check(
        config,
        make_task(arguments, config),
        axis=axis_of(arguments),
        sizes=arguments.widths or arguments.depths,
        lr=arguments.lr,
        rules=arguments.rules,
        steps=arguments.steps,
        seeds=arguments.seeds,
        jobs=arguments.jobs,
        output=arguments.output,
    )
    rows: list[dict[str, object]] = []
    for result in results:
        worst, slope = max(result.slopes.items(), key=lambda item: abs(item[1]))
        rows.append({"rule": result.label, "passes": result.passed, "steepest": worst, "slope": slope})
    output = Path(arguments.output)
    show(
        rows,
        title=f"How the change of an activation scales with {axis_of(arguments)}: slopes within "
        f"{results[0].tolerance:g} of 0 pass",
        written=[output / "coordinates.json", output / "coordinates.png"],
        then=["warmscale", "mup", "transfer", arguments.model, "--data", arguments.data, "--help"],
    )


CHECK = Verb(
    name="check",
    summary="coordinate check: does every activation move equally far at every size",
    description="Train every size for a few steps and fit how the change of each activation scales with the size. "
    "The check is sharpest with zero_init_query and, if the readout is not tied, zero_init_readout in the model's mup "
    "entry, a rate near the best one, at least three widths a factor 2 apart, and batches of about a thousand tokens.",
    example="warmscale mup check mup-model --data packed --widths 64 128 256 --lr 0.01 \\\n  --output check",
    add_arguments=add_arguments,
    run=run,
    after_interrupt="finished runs are kept; run the same command again.",
)
