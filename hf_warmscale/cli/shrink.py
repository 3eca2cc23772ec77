"""`warmscale shrink`: a smaller model from a larger one."""

import json
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_warmscale.cli.documents import read_documents
from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.cli.scaling.quantity import whole
from hf_warmscale.cli.show import show
from hf_warmscale.cli.sizes import add_sizes, chosen_sizes
from hf_warmscale.cli.verb import Verb

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_warmscale.compression import RecipeHealing

CALIBRATION_DOCUMENTS = 1024
"""As many as Minitron measures importance on (arXiv:2407.14679); a training corpus would take an epoch."""
FINALIST_STEPS = 20
PURPOSE = {"--calibration": "measure importance", "--eval-data": "select sizes and judge them"}


def add_arguments(parser: Parser) -> None:
    """Add source, output, sizes and calibration text."""
    parser.add_argument("source", metavar="SOURCE", help="a model folder or a Hub id")
    parser.add_argument("output", metavar="OUTPUT", help="a new folder for the smaller model")
    add_sizes(parser)
    how = parser.add_argument_group("how", "Without sizes, the growth of a grown model is undone.")
    how.add_argument(
        "--calibration",
        nargs="+",
        metavar="FILE",
        help="texts to measure importance on: plain text files, or the first 1,024 documents of JSON lines or "
        "parquet; a short built-in text by default",
    )
    how.add_argument("--keep-growth", action="store_true", help="do not undo a growth by its receipt")
    add_budget(parser)


def add_budget(parser: Parser) -> None:
    """Add the budgets and the options of the search over sizes."""
    budget = parser.add_argument_group("budget", "Instead of sizes: search the sizes that lose least within a budget.")
    budget.add_argument("--parameters", type=whole, metavar="N", help="the most parameters, such as 100M")
    budget.add_argument("--active-parameters", type=whole, metavar="N", help="the most parameters that a token uses")
    budget.add_argument("--memory", type=num_bytes, metavar="BYTES", help="the most bytes of weights, such as 200MB")
    budget.add_argument(
        "--eval-data", metavar="PATH", help="documents: one half selects the sizes, the other judges them"
    )
    budget.add_argument("--trials", type=positive_int, default=30, metavar="N", help="candidates; 30 by default")
    budget.add_argument("--seed", type=int, default=0, metavar="S", help="of the search; 0 by default")
    budget.add_argument(
        "--storage", metavar="FILE", help="a JSON file of finished candidates; the same command continues from it"
    )
    budget.add_argument(
        "--heal",
        metavar="CONFIG.yaml",
        help="then train the winner by this recipe of warmscale train, with SOURCE as the teacher unless its "
        "distillation names another; the same command continues from the last checkpoint of its output_dir, and with "
        "--storage without another search",
    )
    budget.add_argument(
        "--finalists",
        type=positive_int,
        metavar="K",
        help="with --heal: first heal the K best cuts for a few steps each, and go on with the one that is best then",
    )
    budget.add_argument(
        "--finalist-steps", type=positive_int, metavar="N", help="steps for each finalist; 20 by default"
    )


def run(arguments: Namespace) -> None:
    """Shrink to sizes or to a budget."""
    budgets = (arguments.parameters, arguments.active_parameters, arguments.memory)
    if any(amount is not None for amount in budgets):
        shrink_within(arguments)
        return
    for option in ("eval_data", "storage", "heal", "finalists", "finalist_steps"):
        if getattr(arguments, option) is not None:
            raise ValueError(
                f"--{option.replace('_', '-')} is for a search under a budget; add --parameters or --memory, or leave "
                "it out."
            )
    shrink_to_sizes(arguments)


def shrink_within(arguments: Namespace) -> None:
    """Search the sizes within a budget, heal the winner if asked to, write it, then show what was tried."""
    from hf_warmscale.checkpoints import load_tokenizer, refuse_existing
    from hf_warmscale.compression import shrink_to_budget

    named = [name for name, size in chosen_sizes(arguments).items() if size is not None]
    if named:
        raise ValueError(f"--{named[0].replace('_', '-')} names a size, and a budget searches sizes; leave one out.")
    for option, value in {"--calibration": arguments.calibration, "--eval-data": arguments.eval_data}.items():
        if value is None:
            raise ValueError(f"A budget needs text for {option}, to {PURPOSE[option]}; add it.")
    refuse_finalists_without_healing(arguments)
    refuse_existing(arguments.output)
    healing = read_healing(arguments)
    small = shrink_to_budget(
        arguments.source,
        parameters=arguments.parameters,
        active_parameters=arguments.active_parameters,
        memory_bytes=arguments.memory,
        calibration=calibration_texts(arguments.calibration),
        documents=read_documents(arguments.eval_data),
        tokenizer=load_tokenizer(arguments.source),
        n_trials=arguments.trials,
        seed=arguments.seed,
        heal=healing,
        storage=arguments.storage,
        **finalists_of(arguments, healing),
    )
    write_winner(small, arguments, healing)
    found = vars(small)["budget_search"]
    if rows := finalist_rows(found):
        show(rows, title="Finalists: nats per token on the documents of the selection, as cut and briefly healed")
    show(judged_rows(found), title="Nats per token as cut, on the documents that the search never saw (* the winner)")
    if healing is None:
        show([], written=[arguments.output], then=healing_command(arguments))
    else:
        show(healed_rows(found), title="The winner before and after healing, on the same documents")
        following = ["warmscale", "push", arguments.output, "REPO_ID", "--private"]
        show([], written=[arguments.output, healing.run_folder], then=following)


def read_healing(arguments: Namespace) -> "RecipeHealing | None":
    """Read the recipe that heals, if there is one."""
    from hf_warmscale.cli.quiet import show_slow_bars_only
    from hf_warmscale.compression import RecipeHealing

    if arguments.heal is None:
        return None
    show_slow_bars_only()
    healing = RecipeHealing(arguments.heal, arguments.source)
    if healing.run_folder.resolve().is_relative_to(Path(arguments.output).resolve()):
        raise ValueError(f"The output_dir of {arguments.heal} lies in {arguments.output}; name another OUTPUT.")
    return healing


def finalists_of(arguments: Namespace, healing: "RecipeHealing | None") -> dict[str, Any]:
    """Return what the search does with its finalists, if there are to be any."""
    if healing is None or arguments.finalists is None:
        return {}
    steps = arguments.finalist_steps or FINALIST_STEPS
    return {"heal_briefly": healing.briefly(steps), "finalists": arguments.finalists}


def refuse_finalists_without_healing(arguments: Namespace) -> None:
    """Refuse options of a healing that is not asked for."""
    if arguments.finalists is not None and arguments.heal is None:
        raise ValueError("--finalists are healed by the recipe of --heal; add --heal CONFIG.yaml, or leave it out.")
    if arguments.finalist_steps is not None and arguments.finalists is None:
        raise ValueError("--finalist-steps is for --finalists; add --finalists 4, or leave it out.")


def write_winner(small: "PreTrainedModel", arguments: Namespace, healing: "RecipeHealing | None") -> None:
    """Write the model with its receipts and the picture of the search, all or nothing."""
    from hf_warmscale.checkpoints import save_model, staged_directory
    from hf_warmscale.checkpoints.source import find_source
    from hf_warmscale.compression.budget.picture import draw_budget_search
    from hf_warmscale.hub.push import live_receipts

    found = vars(small)["budget_search"]
    with staged_directory(arguments.output) as folder:
        save_model(small, folder, side_files=find_source(arguments.source).folder, receipts=live_receipts(small))
        draw_budget_search(folder / "budget_search.png", found)
        if healing is not None:
            healing.stage.save(folder)


def healing_command(arguments: Namespace) -> list[object]:
    """Return the command that heals a cut by distillation from its source."""
    teacher = json.dumps({"teacher": arguments.source})
    model = ["--model_name_or_path", arguments.output]
    return ["warmscale", "train", "CONFIG.yaml", *model, "--distillation", teacher]


def healed_rows(found: dict[str, Any]) -> list[dict[str, object]]:
    """Return a row each for the source, the winner as it was cut, and the healed winner."""
    reports = {"winner, as cut": found["winner"]["report"], "winner, healed": found["healed"]["report"]}
    rows: list[dict[str, object]] = [{"": "source", "NLL": f"{found['source_nll']:.3f}", "minus source": ""}]
    for name, report in reports.items():
        change = "{low:+.3f} to {high:+.3f}".format(**report["difference"])
        rows.append({"": name, "NLL": f"{report['nll']:.3f}", "minus source": change})
    return rows


def judged_rows(found: dict[str, Any]) -> list[dict[str, object]]:
    """Return a row for each cut that was judged, the best first."""
    rows = sorted(found["judged"], key=lambda row: float(row["report"]["nll"]))
    return [
        {
            **shape_of(row, found),
            "NLL": f"{row['report']['nll']:.3f}",
            "minus winner": "{low:+.2f} to {high:+.2f}".format(**row["report"]["difference"]),
        }
        for row in rows
    ]


def finalist_rows(found: dict[str, Any]) -> list[dict[str, object]]:
    """Return a row for each finalist, the one that healed best first."""
    rows = [row for row in found["candidates"] if "healed_nll" in row]
    return [
        {**shape_of(row, found), "as cut": f"{row['nll']:.3f}", "healed": f"{row['healed_nll']:.3f}"}
        for row in sorted(rows, key=lambda row: float(row["healed_nll"]))
    ]


def shape_of(row: dict[str, Any], found: dict[str, Any]) -> dict[str, object]:
    """Return the first columns of a candidate; the winner has a star."""
    sizes = row["sizes"]
    return {
        "cut": ("* " if sizes == found["winner"]["sizes"] else "") + row["how"],
        "blocks": sizes["num_hidden_layers"],
        "hidden": sizes["hidden_size"],
        "MLP": next((size for name, size in sizes.items() if name.endswith("intermediate_size")), None),
        "heads": sizes.get("num_attention_heads"),
        "M": f"{row['parameters'] / 1e6:.4g}",
    }


def num_bytes(text: str) -> int:
    """Read a number of bytes such as `200MB` or `1GB`."""
    try:
        return whole(text.removesuffix("B").replace("G", "B"))
    except ArgumentTypeError as error:  # it would name what is left of the text
        raise ArgumentTypeError(f"{text!r} is not a number of bytes; write it as 200MB or 1.5GB") from error


def shrink_to_sizes(arguments: Namespace) -> None:
    """Undo a growth or select coordinates, then show the sizes before and after."""
    from hf_warmscale.checkpoints import refuse_existing
    from hf_warmscale.resize import shrink_checkpoint

    refuse_existing(arguments.output)
    receipt = shrink_checkpoint(
        arguments.source,
        arguments.output,
        **chosen_sizes(arguments),
        calibration=calibration_texts(arguments.calibration) if arguments.calibration else None,
        undo_growth=not arguments.keep_growth,
    )
    rows: list[dict[str, object]] = [
        {"": axis, "source": receipt.source_sizes[axis], "shrunk": size}
        for axis, size in receipt.sizes.items()
        if size != receipt.source_sizes[axis]
    ]
    rows.append({"": "parameters", "source": receipt.source_parameters, "shrunk": receipt.parameters})
    how = (
        "by the receipt of its growth"
        if receipt.how == "receipt"
        else "to the most important coordinates on calibration text"
    )
    show(rows, title=f"Shrunk {how}")
    if receipt.verification is not None:
        print(receipt.verification.in_words())
    undone = ["warmscale", "train", "CONFIG.yaml", "--model_name_or_path", arguments.output]
    show([], written=[arguments.output], then=undone if receipt.how == "receipt" else healing_command(arguments))


def calibration_texts(paths: list[str]) -> list[str]:
    """Read plain text files whole, and the first documents of JSON lines or parquet.

    Raises:
        ValueError: if one cannot be read.
        FileNotFoundError: if one is not there.
    """
    structured = (".json", ".jsonl", ".parquet")
    texts: list[str] = []
    for path in paths:
        holds_documents = Path(path.removesuffix(".gz")).suffix in structured
        texts += read_documents(path, at_most=CALIBRATION_DOCUMENTS) if holds_documents else [_plain(path)]
    return texts


def _plain(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; calibrate on plain text, JSON lines or parquet.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no calibration file {path}.") from error


SHRINK = Verb(
    name="shrink",
    summary="make a smaller model from a larger one",
    description="Undo a growth, or select the most important coordinates and blocks, to given sizes or to those that "
    "lose least within a budget. The result loads with AutoModelForCausalLM; shrink_receipt.json in it records the "
    "shrink. A cut model is healed by distillation from its source: with --heal, or by the command printed last.",
    example="warmscale shrink merged small --parameters 300M --calibration new.jsonl \\\n  --eval-data held-out.jsonl",
    add_arguments=add_arguments,
    run=run,
    after_interrupt="no model was written; the same command continues from the --storage file and the checkpoints of "
    "--heal, if there are any.",
)
