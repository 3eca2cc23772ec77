"""`warmscale grow`: a larger model that starts from a smaller one."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.show import show
from hf_warmscale.cli.sizes import add_sizes, chosen_sizes
from hf_warmscale.cli.verb import Verb
from hf_warmscale.options import DEPTHS, WIDTHS

if TYPE_CHECKING:
    from hf_warmscale.resize.growing.receipt import GrowthReceipt

DTYPES = ("float32", "bfloat16", "float16", "float64")


def add_arguments(parser: Parser) -> None:
    """Add source, output, sizes and operators."""
    parser.add_argument("source", metavar="SOURCE", help="a model folder or a Hub id")
    parser.add_argument("output", metavar="OUTPUT", help="a new folder for the grown model")
    add_sizes(parser)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--width",
        choices=WIDTHS,
        default="clone",
        metavar="OP",
        help="clone (exact, integer multiples), zero_pad (exact, any size), szp or net2net; by default clone",
    )
    how.add_argument(
        "--depth",
        choices=DEPTHS,
        default="stack",
        metavar="OP",
        help="stack, interleave, identity (exact) or dus; by default stack",
    )
    how.add_argument(
        "--snr-db", type=decibels, default=10.0, metavar="DB", help="of the noise of clone, or none; 10 by default"
    )
    how.add_argument(
        "--num-experts", type=positive_int, metavar="E", help="make each MLP of a dense model a mixture of E copies"
    )
    how.add_argument("--shrink", type=float, default=0.4, metavar="LAMBDA", help="of szp; 0.4 by default")
    how.add_argument(
        "--insert-after", type=int, nargs="+", metavar="LAYER", help="identity: the block before each new one"
    )
    how.add_argument("--seed", type=int, default=0, metavar="S", help="of all noise; 0 by default")
    how.add_argument("--dtype", choices=DTYPES, metavar="TYPE", help="of the result; the source's by default")
    how.add_argument(
        "--target-tokens",
        type=positive_int,
        metavar="N",
        help="planned training length; a warning says if growth is unlikely to pay",
    )
    how.add_argument("--verify", action="store_true", help="load both models and compare their logits on a probe")


def decibels(text: str) -> float | None:
    """Read a number of decibels, or the word none."""
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is neither a number of decibels nor the word none") from error


def operators(receipt: "GrowthReceipt", grown: Sequence[object]) -> str:
    """Name the operators that changed something: of the widths, of the depth, or both."""
    widths = set(grown) - {"num_hidden_layers", "num_experts", "moe_intermediate_size"}
    used = [receipt.width] if widths else []
    used += [receipt.depth] if "num_hidden_layers" in grown else []
    return " and ".join([*used, "experts"] if receipt.experts is not None else used)


def run(arguments: Namespace) -> None:
    """Grow, then show the sizes before and after."""
    import torch

    from hf_warmscale.resize import grow_checkpoint

    receipt = grow_checkpoint(
        arguments.source,
        arguments.output,
        **chosen_sizes(arguments),
        num_experts=arguments.num_experts,
        width=arguments.width,
        depth=arguments.depth,
        snr_db=arguments.snr_db,
        shrink=arguments.shrink,
        insert_after=arguments.insert_after,
        seed=arguments.seed,
        dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
        verify=arguments.verify,
        target_tokens=arguments.target_tokens,
    )
    rows: list[dict[str, object]] = [
        {"": axis, "source": receipt.source_sizes.get(axis, ""), "grown": size}
        for axis, size in receipt.sizes.items()
        if size != receipt.source_sizes.get(axis)
    ]
    title = f"Grown {receipt.growth_factor:.2f}-fold by {operators(receipt, [row[''] for row in rows])}"
    rows.append({"": "parameters", "source": receipt.source_parameters, "grown": receipt.parameters})
    show(rows, title=title)
    if receipt.verification is not None:
        print(receipt.verification.in_words())
    following = ["warmscale", "train", "CONFIG.yaml", "--model_name_or_path", arguments.output]
    show([], written=[arguments.output], then=following)


GROW = Verb(
    name="grow",
    summary="make a larger model that starts from a smaller one",
    description="Grow a model in width, depth or both. The result loads with AutoModelForCausalLM; "
    "growth_receipt.json in it records the growth.",
    example="warmscale grow HuggingFaceTB/SmolLM2-135M large --hidden-size 1152 \\\n"
    "  --num-attention-heads 18 --num-key-value-heads 6 --intermediate-size 3072 \\\n"
    "  --verify",
    add_arguments=add_arguments,
    run=run,
)
