"""Grow a small random model of every type of transformers' causal-LM mapping: widths by 2, and blocks that do nothing.

    python recipes/reproduce/exactness/all_types.py            # resumes; about half an hour of one core
    python recipes/reproduce/exactness/all_types.py --report

Each type is one JSON file in `types/`. What is refused is refused by name and reason.
"""

import argparse
import json
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import is_exact, measure, random_model
from tqdm import tqdm
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_warmscale.architecture import Axis, describe, find_field
from hf_warmscale.architecture.tiny import TINY, axes_of, tiny_config
from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.report import markdown_table

HERE = Path(__file__).parent
CPU_SECONDS = 120
LAYERS = 3
WIDTHS = (
    Axis.HIDDEN,
    Axis.INTERMEDIATE,
    Axis.HEADS,
    Axis.KV_HEADS,
    Axis.EXPERT_INTERMEDIATE,
    Axis.SHARED_INTERMEDIATE,
)


class OutOfTimeError(BaseException):
    """One type took longer than it may; nothing between takes it for a refusal."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OutOfTimeError(f"not finished within {seconds:.0f} CPU seconds")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def grow_type(model_type: str) -> dict[str, Any]:
    row: dict[str, Any] = {"model type": model_type}
    try:
        with cpu_limit(CPU_SECONDS):
            config = small_config(model_type)
            source = describe(config)
            model = random_model(config)
            for operator, growth in {
                "clone": doubled(source.sizes, source.fields, source.derived),
                "identity": {"num_hidden_layers": 2 * source.sizes[Axis.LAYERS], "depth": "identity"},
            }.items():
                row[operator] = grow(model, growth) if growth else {"refused": "it has no width that could be set"}
    except (ValueError, OutOfTimeError) as error:
        row["refused"] = one_line(error)
    except Exception as error:  # whatever the family's own code raises
        row["refused"] = f"its own code fails at this size: {type(error).__name__}: {one_line(error)}"
    return row


def small_config(model_type: str) -> PreTrainedConfig:
    """Return a config of about the sizes that `describe` proves a map at, with three blocks."""
    config = CONFIG_MAPPING[model_type]()
    fields = {axis: find_field(config, axis) for axis in Axis}
    sizes = {axis: TINY[axis] for axis in TINY if axis in axes_of(config)}
    heads, kv_heads = (getattr(config, fields[axis] or "", None) for axis in (Axis.HEADS, Axis.KV_HEADS))
    if Axis.KV_HEADS in sizes and kv_heads in (heads, None):
        sizes[Axis.KV_HEADS] = sizes[Axis.HEADS]
    if fields[Axis.LAYERS] is not None:
        sizes[Axis.LAYERS] = LAYERS
    return tiny_config(config, sizes)


def doubled(sizes: Any, fields: Any, derived: Any) -> dict[str, Any]:
    settable = [axis for axis in WIDTHS if axis in sizes and axis in fields and axis not in derived]
    return {str(axis): 2 * sizes[axis] for axis in settable}


def grow(model: transformers.PreTrainedModel, growth: dict[str, Any]) -> dict[str, Any]:
    try:
        row = measure(model, growth)
    except ValueError as error:
        return {"refused": one_line(error)}
    if not row.pop("claimed exact") and not is_exact(row):
        return {"refused": f"inexact, and its receipt says so: logits move by {row['fp64 patched']:.1g}"}
    return {**row, "exact": is_exact(row)}


def one_line(error: BaseException) -> str:
    return " ".join(str(error).replace("|", "/").split())[:300]


def report() -> None:
    rows = [json.loads(path.read_text()) for path in sorted((HERE / "types").glob("*.json"))]
    exact = [row for row in rows if all(row.get(name, {}).get("exact") for name in ("clone", "identity"))]
    moved = [row for row in rows if any(row.get(name, {}).get("exact") is False for name in ("clone", "identity"))]
    others = [row for row in rows if row not in exact and row not in moved]
    text = (
        f"# `clone` and `identity` over all causal LMs of transformers {transformers.__version__}\n\n"
        "    python recipes/reproduce/exactness/all_types.py\n\n"
        f"{len(exact)} of {len(rows)} types grow exactly, all widths by 2 (`clone`, 10 dB of paired noise) and the "
        "depth by 2 (`identity`), before and after a reload: |difference of a logit| <= 1e-11 in float64 with norms "
        f"and softmax in float64 too, <= 5e-6 in float64 as it is, <= 2e-4 in float32. {len(moved)} are beyond a bar, "
        f"{len(others)} are refused by one operator or by both. The numbers are the larger of before and after.\n\n"
        "## Exact\n\n" + markdown_table([cells(row) for row in exact])
    )
    if moved:
        text += "\n## Beyond a bar\n\n" + markdown_table([cells(row) for row in moved])
    text += "\n## Refused\n\n" + markdown_table([refusal(row) for row in others])
    write_text(HERE / "types.md", text)


def cells(row: dict[str, Any]) -> dict[str, str]:
    shown = {"model type": row["model type"]}
    for operator in ("clone", "identity"):
        for column in ("fp64 patched", "fp64", "fp32", "KL bf16"):
            values = row.get(operator, {})
            measured = [values[name] for name in (column, f"{column}, reloaded") if name in values]
            shown[f"{operator}, {column}"] = f"{max(measured):.0e}" if measured else "-"
    return shown


def refusal(row: dict[str, Any]) -> dict[str, str]:
    verdicts = {
        operator: row.get("refused") or row[operator].get("refused") or "exact" for operator in ("clone", "identity")
    }
    return {"model type": row["model type"], **verdicts}


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="these types, again")
    parser.add_argument("--report", action="store_true", help="only make the table")
    arguments = parser.parse_args()
    (HERE / "types").mkdir(exist_ok=True)
    if not arguments.report:
        for name in tqdm(arguments.only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
            target = HERE / "types" / f"{name}.json"
            if arguments.only or not target.exists():
                write_json(target, json.loads(json.dumps(grow_type(name)).replace("NaN", "null")))
    report()


if __name__ == "__main__":
    main()
