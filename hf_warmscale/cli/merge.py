"""`warmscale merge`: merge the checkpoints of a run, with weights that are given or found on held-out text."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.show import show
from hf_warmscale.cli.verb import Verb
from hf_warmscale.options import MERGE_METHODS, SPACES, SpaceName

if TYPE_CHECKING:
    from hf_warmscale.merging import MergeReceipt, MergeResult


def add_arguments(parser: Parser) -> None:
    """Add the checkpoints and the options of both ways to weigh them."""
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folders or Hub ids, the oldest first")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder for the merged model")
    search = parser.add_argument_group("search", "Find the weights on held-out text (Gaussian process).")
    search.add_argument(
        "--eval-data", metavar="PATH", help="documents: one half selects the weights, the other judges them"
    )
    search.add_argument(
        "--space",
        choices=SPACES,
        metavar="S",
        help=f"{', '.join(SPACES)}; by default pair for two checkpoints, else simplex",
    )
    search.add_argument("--trials", type=positive_int, default=20, metavar="N", help="the most trials; 20 by default")
    search.add_argument(
        "--storage",
        metavar="URL",
        help="a journal file or an Optuna URL shared by searches on several machines, each with its own --output",
    )
    search.add_argument("--seed", type=int, default=0, metavar="S", help="of the search, or of dare; 0 by default")
    search.add_argument(
        "--allow-public-benchmarks", action="store_true", help="accept --eval-data named like a public benchmark"
    )
    given = parser.add_argument_group("no search", "Merge with given weights, without any data.")
    methods = f"{', '.join(MERGE_METHODS)}; linear by default"
    given.add_argument("--method", choices=MERGE_METHODS, metavar="M", help=methods)
    given.add_argument("--weights", type=float, nargs="+", metavar="W", help="one per checkpoint; equal by default")
    given.add_argument("--base", metavar="MODEL", help="the model from which ties, dare, ... take differences")
    given.add_argument("--density", type=float, metavar="P", help="share of each difference that ties and dare keep")


def run(arguments: Namespace) -> None:
    """Search or merge, then show the weights."""
    if arguments.eval_data is None:
        receipt = merge(arguments)
        write_card(arguments.output)
        show_merge(arguments, receipt)
    else:
        result = search(arguments)
        if result.study is not None:  # only one process of a launch owns the study
            write_card(arguments.output)
            show_search(arguments, result)


def merge(arguments: Namespace) -> "MergeReceipt":
    """Merge with given weights."""
    from hf_warmscale.merging import merge_checkpoints

    for option in ("space", "storage"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} needs a search on held-out text; give the text with --eval-data.")
    return merge_checkpoints(
        arguments.checkpoints,
        arguments.output,
        method=arguments.method or "linear",
        weights=arguments.weights,
        base=arguments.base,
        density=0.5 if arguments.density is None else arguments.density,
        seed=arguments.seed,
    )


def search(arguments: Namespace) -> "MergeResult":
    """Search the weights on one half of the documents and judge them on the other."""
    from hf_warmscale.cli.quiet import no_bars_of_datasets
    from hf_warmscale.merging import refuse_public_benchmark, search_merge
    from hf_warmscale.merging.objectives.splits import split_documents
    from hf_warmscale.training.data.documents import load_documents

    for option in ("method", "weights", "base", "density"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} is for a merge without a search; leave out either it or --eval-data.")
    refuse_public_benchmark(Path(arguments.eval_data).name, allow=arguments.allow_public_benchmarks)
    with no_bars_of_datasets():
        select, confirm = split_documents(load_documents(arguments.eval_data)["text"], arguments.eval_data)
    space: SpaceName = arguments.space or ("pair" if len(arguments.checkpoints) == 2 else "simplex")
    return search_merge(
        arguments.checkpoints,
        select=select,
        confirm=confirm,
        space=space,
        n_trials=arguments.trials,
        seed=arguments.seed,
        storage=arguments.storage,
        output=arguments.output,
    )


def write_card(output: str) -> None:
    """Write the model card beside the model; a push rewrites it with the name of the repository."""
    from hf_warmscale.hub import make_card

    make_card(output).save(Path(output) / "README.md")


def show_merge(arguments: Namespace, receipt: "MergeReceipt") -> None:
    """Show given weights."""
    rows = weight_rows(arguments, receipt.weights or [None] * len(receipt.inputs))
    show(rows, title=f"Merged by {receipt.method}", written=[arguments.output], then=next_command(arguments))


def show_search(arguments: Namespace, result: "MergeResult") -> None:
    """Show the verdict of the held-out text, whatever it is, and the weights of the model that was written."""
    from hf_warmscale.merging.merge import RESULT
    from hf_warmscale.merging.search.result import JOURNAL

    output = Path(arguments.output)
    rows = [
        {
            "domain": row["domain"],
            "last": row["last"],
            "uniform": row["uniform"],
            "single": row["before"],
            "winner": row["after"],
            "change": f"{row['difference']:+.4f}",
            "interval": "{:+.4f} to {:+.4f}".format(*row["interval"]),
        }
        for row in result.domains
    ]
    show(rows, title="Nats per token on the documents that the search never saw")
    print(result.verdict)
    if result.mergeability is not None:
        print(result.mergeability.advice)
    if isinstance(result.weights, Mapping):
        title, weights = f"Each parameter has its own weights: {output / RESULT}", []
    else:
        title, weights = "Weights of the model", weight_rows(arguments, result.weights)
    show(weights, title=title)
    trials = output / JOURNAL if (output / JOURNAL).is_file() else arguments.storage
    print(f"Trials:  optuna-dashboard {trials}  (pip install optuna-dashboard)")
    show([], written=[arguments.output], then=next_command(arguments))


def weight_rows(arguments: Namespace, weights: Sequence[float | None]) -> list[dict[str, object]]:
    """Return a row for each checkpoint."""
    pairs = zip(arguments.checkpoints, weights, strict=True)
    return [{"checkpoint": checkpoint, "weight": weight} for checkpoint, weight in pairs]


def next_command(arguments: Namespace) -> list[str]:
    """Return the command that uploads the model."""
    return ["warmscale", "push", arguments.output, "REPO_ID", "--private"]


MERGE = Verb(
    name="merge",
    summary="merge checkpoints, with weights found on held-out text or given",
    description="Merge checkpoints into one model. With --eval-data the weights are searched on half of the documents "
    "and judged on the other half; 'no merge' is a possible answer.",
    example="warmscale merge continued/checkpoint-8000 continued/checkpoint-8500 \\\n"
    "  --output merged --eval-data held-out.jsonl",
    add_arguments=add_arguments,
    run=run,
    after_interrupt="no model was written; finished trials are kept: run the same command again to continue.",
)
