"""`warmscale scaling plan`: what a budget buys, from scratch, grown, or trained on."""

from argparse import Namespace

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.scaling.quantity import candidate, model, quantity
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb


def add_arguments(parser: Parser) -> None:
    """Add target, budget, candidates and law."""
    parser.add_argument(
        "--target", type=model, required=True, metavar="MODEL", help="parameters (360M), or a checkpoint"
    )
    parser.add_argument("--tokens", type=quantity, metavar="T", help="the budget in tokens, such as 5B")
    parser.add_argument("--flops", type=quantity, metavar="F", help="instead, in FLOPs, such as 1e21")
    parser.add_argument("--hours", type=quantity, metavar="H", help="instead, in hours of this machine")
    parser.add_argument(
        "--candidates",
        nargs="+",
        type=candidate,
        default=[],
        metavar="MODEL:TOKENS",
        help="models that exist and the tokens behind them (135M:2T), or run folders",
    )
    parser.add_argument("--law", metavar="JSON", help="from warmscale scaling fit; by default published constants")
    parser.add_argument(
        "--sequence-length", type=positive_int, default=2048, metavar="L", help="tokens in a row (2048)"
    )
    parser.add_argument(
        "--tokens-per-second", type=quantity, metavar="X", help="of the target; else 20 steps are timed"
    )
    parser.add_argument("--batch-size", type=positive_int, default=1, metavar="R", help="rows in a timed step (1)")
    parser.add_argument("--replay", type=float, default=0.05, metavar="S", help="share of old data (0.05)")
    parser.add_argument("--output", default="plan.json", metavar="JSON", help="the file to write")


def run(arguments: Namespace) -> None:
    """Plan, write the JSON, then show the options, the break-even, the assumptions and the advice."""
    from hf_warmscale.checkpoints import write_json
    from hf_warmscale.scaling import load_scaling_law, plan

    found = plan(
        target=arguments.target,
        tokens=arguments.tokens,
        flops=arguments.flops,
        hours=arguments.hours,
        candidates=arguments.candidates,
        law=None if arguments.law is None else load_scaling_law(arguments.law),
        sequence_length=arguments.sequence_length,
        tokens_per_second=arguments.tokens_per_second,
        batch_size=arguments.batch_size,
        replay=arguments.replay,
    )
    write_json(arguments.output, found.to_dict())
    show(found.table(), title="What the budget buys; FLOPs at inference are per token")
    for assumption in found.assumptions:
        print(f"Assumed: {assumption}")
    print(f"Advice:  {found.advice}")
    show([], written=[arguments.output], then=["warmscale", "grow", "--help"])


PLAN = Verb(
    name="plan",
    summary="compare training from scratch, growing and training on",
    description="Compare what one budget buys: the target from scratch, grown from a candidate, the candidate trained "
    "on, continued with replay, or merged. With published constants only ratios count; without a law of grown runs "
    "the break-even is shown: how many tokens a base must be worth.",
    example="warmscale scaling plan --target 360M --tokens 5B --candidates 135M:2T",
    add_arguments=add_arguments,
    run=run,
)
