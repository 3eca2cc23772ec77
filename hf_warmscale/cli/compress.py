"""`warmscale compress`: what bits and zeros cost in loss, and what they save in bytes."""

from argparse import Namespace

from hf_warmscale.cli.documents import read_documents
from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb


def add_arguments(parser: Parser) -> None:
    """Add the models, the grid and the held-out text."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="model folders or Hub ids with one tokenizer")
    parser.add_argument("--eval-data", required=True, metavar="PATH", help="held-out documents")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder for the table and its picture")
    grid = parser.add_argument_group("grid", "Each number of bits at each share of zeros.")
    grid.add_argument(
        "--bits", type=int, nargs="+", default=[8, 6, 4], metavar="B", help="2 to 8, 16 (bfloat16) or 32; 8 6 4"
    )
    grid.add_argument(
        "--sparsities", type=float, nargs="+", default=[0.0], metavar="S", help="shares of pruned weights; 0"
    )
    grid.add_argument("--group-size", type=positive_int, metavar="N", help="inputs that share a scale; a row each")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the bootstrap; 0 by default")


def run(arguments: Namespace) -> None:
    """Measure, write the table and the picture, then show the table."""
    from hf_warmscale.checkpoints import load_tokenizer, refuse_existing, staged_directory
    from hf_warmscale.compression import compression_frontier
    from hf_warmscale.compression.frontier import FRONTIER_FILE, PICTURE_FILE

    refuse_existing(arguments.output)
    frontier = compression_frontier(
        arguments.sources,
        bits=arguments.bits,
        sparsities=arguments.sparsities,
        documents=read_documents(arguments.eval_data),
        tokenizer=load_tokenizer(arguments.sources[0]),
        group_size=arguments.group_size,
        seed=arguments.seed,
    )
    with staged_directory(arguments.output) as folder:
        frontier.save(folder)
    show(frontier.table(), title=f"Nats per token on held-out text; changes from {frontier.reference}")
    show([], written=[f"{arguments.output}/{name}" for name in (FRONTIER_FILE, PICTURE_FILE)])


COMPRESS = Verb(
    name="compress",
    summary="measure what pruning and quantization cost",
    description="Prune by magnitude and quantize, without training, and compare bytes on disk with the loss on "
    "held-out text. No model is written.",
    example="warmscale compress small --bits 8 6 4 --sparsities 0 0.3 \\\n"
    "  --eval-data held-out.jsonl --output frontier",
    add_arguments=add_arguments,
    run=run,
)
