"""`warmscale quickstart`: the whole pipeline on real text, on a CPU, in minutes."""

from argparse import Namespace
from pathlib import Path

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb

OUTPUT = "warmscale-quickstart"


def add_arguments(parser: Parser) -> None:
    """Add the folder, the budget and the seed."""
    parser.add_argument("--output", default=OUTPUT, metavar="DIR", help=f"by default ./{OUTPUT}")
    parser.add_argument(
        "--tokens",
        type=positive_int,
        metavar="N",
        help="budget of all training together; by default about five minutes",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random; 0 by default")


def run(arguments: Namespace) -> None:
    """Run the pipeline and show its losses."""
    from hf_warmscale.cli.quiet import show_slow_bars_only
    from hf_warmscale.quickstart import run_quickstart

    show_slow_bars_only()
    output = Path(arguments.output)
    report = run_quickstart(output, tokens=arguments.tokens, seed=arguments.seed)
    losses = [
        {"model": model, **{domain: score["nll"] for domain, score in row.items()}}
        for model, row in report["losses"].items()
    ]
    show(losses, title="Loss on held-out files, nats per token")
    comparisons = [
        {
            "question": row["question"],
            "difference": f"{row['estimate']:+.3f}",
            "95 % interval": f"[{row['low']:+.3f}, {row['high']:+.3f}]",
            "loss is": row["verdict"],
        }
        for row in report["comparisons"]
    ]
    show(
        comparisons,
        title="What may be said",
        written=[output / "report.md", output / "report.json", output / "curves.png", output / "model"],
        then=["warmscale", "push", output / "model", "REPO_ID", "--private"],
    )


QUICKSTART = Verb(
    name="quickstart",
    summary="the whole pipeline on real text, on a CPU, in minutes",
    description="Pretrain a small muP model on text that every installation has, grow it, continue it on another "
    "domain with and without replay, and merge its checkpoints. Leaves report.md, report.json, a picture and model/.",
    example="warmscale quickstart --output quickstart",
    add_arguments=add_arguments,
    run=run,
    after_interrupt="run the same command again to go on from the last checkpoint.",
)
