"""Report the measurements of the quickstart as text, JSON and a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_warmscale.architecture import describe
from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.quickstart.merge import Merge
from hf_warmscale.quickstart.runs import BASE_HIDDEN_SIZE, GROWN_HIDDEN_SIZE, Run, Runs, model_config
from hf_warmscale.quickstart.scores import Comparison, Scores, compare
from hf_warmscale.quickstart.settings import Settings
from hf_warmscale.report import figure, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "curves.png"


def write_report(
    folder: Path, settings: Settings, runs: Runs, merge: Merge, chosen: str, scores: Scores, provenance: str
) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `curves.png`, and return the content of the first."""
    comparisons = compare(scores)
    report: dict[str, Any] = {
        "settings": settings.to_dict(),
        "losses": {name: {domain: score.summary() for domain, score in row.items()} for name, row in scores.items()},
        "comparisons": [
            {
                "question": item.question,
                "model": item.model,
                "control": item.control,
                "domain": item.domain,
                **item.difference.to_dict(),
                "verdict": item.verdict,
            }
            for item in comparisons
        ],
        "merge": {
            "checkpoints": [path.name for path in merge.checkpoints],
            "accepted": merge.result["accepted"],
            "verdict": merge.result["verdict"],
            "weights": merge.result["weights"],
        },
        "model": chosen,
        "tokens": {
            "base": settings.steps("base") * settings.tokens_per_step,
            "grown": settings.steps("grown") * settings.tokens_per_step,
            "continued": settings.steps("continued") * settings.tokens_per_step,
        },
        "charged": charged_rows(settings, scores),
        "curves": {name: run.curves() for name, run in vars(runs).items()},
        "provenance": provenance,
    }
    _draw(folder / PICTURE, runs, merge)
    write_text(folder / "report.md", _markdown(folder.name, report, scores, comparisons))
    write_json(folder / "report.json", report)
    return report


def loss_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return one row a model: nats per token and bits per byte of both domains."""
    return [
        {"model": name}
        | {f"{domain}, nats/token": score.mean for domain, score in row.items()}
        | {f"{domain}, bits/byte": score.bits_per_byte for domain, score in row.items()}
        for name, row in scores.items()
    ]


def charged_rows(settings: Settings, scores: Scores) -> list[dict[str, Any]]:
    """Return one row for each way to spend the tokens after the base: what it costs, without and with the base."""
    base_tokens, tokens = (settings.steps(kind) * settings.tokens_per_step for kind in ("base", "grown"))
    costs = {size: _cost(settings, size) for size in (BASE_HIDDEN_SIZE, GROWN_HIDDEN_SIZE)}
    base = base_tokens * costs[BASE_HIDDEN_SIZE]
    rows = []
    for name, size, has_base in (
        ("grown", GROWN_HIDDEN_SIZE, True),
        ("trained-on", BASE_HIDDEN_SIZE, True),
        ("scratch", GROWN_HIDDEN_SIZE, False),
    ):
        own = tokens * costs[size]
        rows.append(
            {
                "model": name,
                "hidden size": size,
                "tokens": tokens,
                "tokens with the base's": tokens + base_tokens * has_base,
                "TFLOP": own / 1e12,
                "TFLOP with the base's": (own + base * has_base) / 1e12,
                "prose, nats/token": scores[name]["prose"].mean,
            }
        )
    return rows


def _cost(settings: Settings, hidden_size: int) -> float:
    """Return the training FLOPs of a token."""
    return describe(model_config(settings, hidden_size)).flops_per_token(settings.row_length)


def comparison_rows(comparisons: list[Comparison]) -> list[dict[str, Any]]:
    """Return one row a question: the difference, its interval and what may be said."""
    return [
        {
            "question": item.question,
            "difference, nats/token": f"{item.difference.estimate:+.3f}",
            "95 % interval": f"[{item.difference.low:+.3f}, {item.difference.high:+.3f}]",
            "loss is": item.verdict,
        }
        for item in comparisons
    ]


def _markdown(settings_folder: str, report: dict[str, Any], scores: Scores, comparisons: list[Comparison]) -> str:
    tokens, settings = report["tokens"], report["settings"]
    kept = "the annealed end of the run" if report["model"] == "annealed" else "the merge"
    return f"""# A quickstart of hf_warmscale

A muP model of hidden size {BASE_HIDDEN_SIZE}, the base, was trained on {tokens["base"]:,} tokens of documentation
strings, grown to {GROWN_HIDDEN_SIZE} by `szp` and trained on {tokens["grown"]:,} tokens more. Two controls saw those
same tokens in the same order, under the same schedule: the base trained on without growing, and a model of hidden size
{GROWN_HIDDEN_SIZE} from scratch. The grown model was then continued on {tokens["continued"]:,} tokens of source code,
with {settings["replay"]:.0%} replay and without. The last {len(report["merge"]["checkpoints"])} checkpoints of the
constant phase were merged. One seed ({settings["seed"]}); all text is from the installed Python packages.

## Loss on held-out files

{markdown_table(loss_rows(scores))}
`last constant` is the last checkpoint before the anneal, `continued` the end of the same run.

## What may be said

{markdown_table(comparison_rows(comparisons))}
Negative is better. The intervals are paired bootstraps over the held-out documents: they measure the uncertainty of
the difference between these two models, not how it would change with another seed, size or budget.

## What is charged

{markdown_table(report["charged"])}
The comparisons above charge only the tokens after the base. The base's own tokens count for the grown model and for
the base trained on, unless the base was there anyway. All runs have one learning rate, tuned for none of them.

## The merge

{report["merge"]["verdict"]}

`model/` holds {kept}, which had the lower loss on the split that the search used.

## Several processes

`continue.yaml` is the continuation with replay as a recipe of its own; on two processes (the batch is the same):

    accelerate launch --num_processes 2 -m hf_warmscale train {settings_folder}/continue.yaml \\
        --per_device_train_batch_size {settings["batch_rows"] // 2}

![curves]({PICTURE})

{report["provenance"]}; one JSON per run in `results/`.
"""


def _draw(path: Path, runs: Runs, merge: Merge) -> None:
    with figure(path, size=(10, 7.2)) as drawing:
        (first, second), (third, fourth) = drawing.subplots(2, 2)
        _panel(first, f"Base, hidden {BASE_HIDDEN_SIZE}", {"prose": (runs.base, "prose"), "code": (runs.base, "code")})
        _panel(
            second,
            f"Grown to {GROWN_HIDDEN_SIZE}, and two controls: prose",
            {
                "grown by szp": (runs.grown, "prose"),
                "base trained on": (runs.trained_on, "prose"),
                "from scratch": (runs.scratch, "prose"),
            },
        )
        _panel(
            third,
            "Continued on code: old (dashed) and new domain",
            {
                "code, replay": (runs.continued, "code"),
                "code, none": (runs.no_replay, "code"),
                "prose, replay": (runs.continued, "prose"),
                "prose, none": (runs.no_replay, "prose"),
            },
        )
        _merge_panel(fourth, merge)


def _panel(axes: "Axes", title: str, lines: dict[str, tuple[Run, str]]) -> None:
    for label, (run, domain) in lines.items():
        tokens, losses = run.curve(f"eval_{domain}_loss")
        old = label.startswith("prose,")
        axes.plot([count / 1e3 for count in tokens], losses, "--" if old else "-", marker=".", label=label)
    axes.set_title(title)
    axes.set_xlabel("thousand tokens of this run")
    axes.set_ylabel("loss, nats per token")
    axes.legend()


def _merge_panel(axes: "Axes", merge: Merge) -> None:
    losses = [trial["values"][0] for trial in merge.trials if trial.get("values")]
    axes.plot(range(1, len(losses) + 1), losses, "o", label="a merge")
    best = [min(losses[: count + 1]) for count in range(len(losses))]
    axes.step(range(1, len(losses) + 1), best, where="post", label="best so far")
    axes.set_title("Merge search on the select split")
    axes.set_xlabel("trial (checkpoints and averages first)")
    axes.set_ylabel("loss, nats per token")
    axes.legend()
