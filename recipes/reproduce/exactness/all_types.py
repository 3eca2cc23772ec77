"""Describe every type of transformers' causal-LM mapping, and grow it: widths by 2, and blocks that do nothing.

    python recipes/reproduce/exactness/all_types.py            # resumes; about a quarter of an hour of one core
    python recipes/reproduce/exactness/all_types.py --report

Each type is one JSON file in `types/`, with the version of the code that made it; rows of two versions make no table.
From them come `types.md` here and the table of `recipes/reproduce/architecture`: a type is described at its default
config, or, where that builds no model, with the usual sizes set; what grows is the tiny model that its map was proved
on, with small sizes also where there is no axis. What is refused is refused by name and reason.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from measure import is_exact, measure, random_model
from transformers import PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import Axis, ModelMap, describe, find_field, resized_config
from hf_warmscale.checkpoints import write_text
from hf_warmscale.report import markdown_table
from hf_warmscale.studies.provenance import provenance_line

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from every_type import (  # noqa: E402  # shared by the studies of all types
    SHOWN,
    USUAL,
    default_config,
    one_line,
    rows_of_every_type,
    with_small_sizes,
)

CPU_SECONDS = 60
WIDTHS = (
    Axis.HIDDEN,
    Axis.INTERMEDIATE,
    Axis.HEADS,
    Axis.KV_HEADS,
    Axis.EXPERT_INTERMEDIATE,
    Axis.SHARED_INTERMEDIATE,
)
OPERATORS = ("clone", "identity")


def row_of(model_type: str) -> dict[str, Any]:
    start = time.process_time()
    try:
        config = default_config(model_type)
    except Exception as error:  # whatever the family's own code raises
        return {"refused": f"its config has no default: {type(error).__name__}: {one_line(error)}"}
    try:
        described = describe_somehow(config)
    except ValueError as error:
        return {"refused": one_line(error)}
    proved = {
        "tensors": len(described.parameters),
        "parameters": described.num_parameters(),
        "errors": {axis.value: error for axis, error in described.proof.items()},
        "CPU seconds": round(time.process_time() - start, 2),
    }
    small = describe_small(described)
    model = random_model(small.proved_on)
    deeper = {"num_hidden_layers": 2 * small.sizes[Axis.LAYERS], "depth": "identity"}
    return {"described": proved, "clone": grow(model, doubled(small)), "identity": grow(model, deeper)}


def describe_somehow(config: PreTrainedConfig) -> ModelMap:
    """Describe the config, or where it builds no model, the same with the usual sizes."""
    try:
        return describe(config)
    except ValueError as error:
        if "no causal LM can be built" not in str(error):
            raise
        settable = [axis for axis in USUAL if axis is Axis.HEAD_DIM or find_field(config, axis) is not None]
        try:
            usual = resized_config(config, {axis: USUAL[axis] for axis in settable})
        except Exception:  # the family's own code refuses these sizes: what is said is why the default was refused
            raise error from None
        return describe(usual)


def describe_small(described: ModelMap) -> ModelMap:
    """Describe the tiny model that a map was proved on, also with small sizes where there is no axis if they fit."""
    try:
        return describe(with_small_sizes(described.proved_on))
    except ValueError:  # the family's own code
        return describe(described.proved_on)


def doubled(small: ModelMap) -> dict[str, Any]:
    settable = [axis for axis in WIDTHS if axis in small.sizes and axis in small.fields and axis not in small.derived]
    return {str(axis): 2 * small.sizes[axis] for axis in settable}


def grow(model: PreTrainedModel, growth: dict[str, Any]) -> dict[str, Any]:
    if not growth:
        return {"refused": "it has no width that could be set"}
    try:
        row = measure(model, growth)
    except ValueError as error:
        return {"refused": one_line(error)}
    except Exception as error:  # whatever the family's own code raises
        return {"refused": f"its own code fails at this size: {type(error).__name__}: {one_line(error)}"}
    if not row.pop("claimed exact") and not is_exact(row):
        moved = max(value for name, value in row.items() if name.startswith("fp64"))
        return {"refused": f"inexact, and its receipt says so: logits move by {moved:.1g}"}
    return {**row, "exact": is_exact(row)}


def architecture_report(rows: list[dict[str, Any]]) -> str:
    proved = [row for row in rows if "described" in row]
    others = [row for row in rows if "described" not in row]
    crashed = [row for row in others if "failed" in row]
    return (
        f"# `describe()` over all causal LMs of transformers {transformers.__version__}\n\n"
        f"{len(proved)} of {len(rows)} types are described and proved; {len(crashed)} crash or run out of time. "
        "Every parameter is classified; the error is the largest change of a logit, relative to the largest logit, "
        "when one axis is permuted wherever the map names it, in float64 on a tiny copy of the architecture. Which of "
        "them grow exactly is in `recipes/reproduce/exactness/types.md`, made from the same rows.\n\n"
        f"    python recipes/reproduce/exactness/all_types.py\n\n{provenance_line(rows)}.\n\n## Axis by axis\n\n"
        + markdown_table([errors_of(row) for row in proved if row["model type"] in SHOWN])
        + "\n## Proved\n\n"
        + markdown_table([proof_of(row) for row in proved])
        + "\n## Refused\n\n"
        + markdown_table([{"model type": row["model type"], "reason": reason_of(row)} for row in others])
    )


def errors_of(row: Mapping[str, Any]) -> dict[str, str]:
    errors = row["described"]["errors"]
    return {"model type": row["model type"]} | {
        axis.value: f"{errors[axis.value]:.0e}" if axis.value in errors else "" for axis in Axis
    }


def proof_of(row: Mapping[str, Any]) -> dict[str, Any]:
    described = row["described"]
    return {
        "model type": row["model type"],
        "tensors": described["tensors"],
        "parameters": described["parameters"],
        "largest error": f"{max(described['errors'].values()):.0e}",
        "CPU seconds": described["CPU seconds"],
    }


def exactness_report(rows: list[dict[str, Any]]) -> str:
    exact = [row for row in rows if all(row.get(name, {}).get("exact") for name in OPERATORS)]
    moved = [row for row in rows if any(row.get(name, {}).get("exact") is False for name in OPERATORS)]
    others = [row for row in rows if "described" in row and row not in exact and row not in moved]
    by_operator = ", ".join(
        f"{sum(bool(row.get(name, {}).get('exact')) for row in rows)} by `{name}`" for name in OPERATORS
    )
    text = (
        f"# `clone` and `identity` over all causal LMs of transformers {transformers.__version__}\n\n"
        f"    python recipes/reproduce/exactness/all_types.py\n\n{provenance_line(rows)}.\n\n"
        f"{len(exact)} of {len(rows)} types grow exactly, all widths by 2 (`clone`, 10 dB of paired noise) and the "
        "depth by 2 (`identity`), before and after a reload: |difference of a logit| <= 1e-11 in float64 with norms "
        "and softmax in float64 too, <= 5e-6 in float64 as it is, <= 2e-4 in float32 "
        f"({by_operator}). {len(moved)} are beyond a bar, {len(others)} are described and refused by one operator or "
        f"by both; {len(rows) - len(exact) - len(moved) - len(others)} are not described (see "
        "`recipes/reproduce/architecture`). The numbers are the larger of before and after.\n\n"
        "## Exact\n\n" + markdown_table([cells(row) for row in exact])
    )
    if moved:
        text += "\n## Beyond a bar\n\n" + markdown_table([cells(row) for row in moved])
    return text + "\n## Described, and refused by an operator\n\n" + markdown_table([refusal(row) for row in others])


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    shown = {"model type": row["model type"]}
    for operator in OPERATORS:
        for column in ("fp64 patched", "fp64", "fp32", "KL bf16"):
            values = row.get(operator, {})
            measured = [values[name] for name in (column, f"{column}, reloaded") if values.get(name) is not None]
            shown[f"{operator}, {column}"] = f"{max(measured):.0e}" if measured else "-"
    return shown


def refusal(row: Mapping[str, Any]) -> dict[str, str]:
    return {"model type": row["model type"]} | {name: row[name].get("refused", "exact") for name in OPERATORS}


def reason_of(row: Mapping[str, Any]) -> str:
    return str(row.get("refused") or row["failed"])


def main() -> None:
    rows = rows_of_every_type(__doc__ or "", HERE / "types", row_of, cpu_seconds=CPU_SECONDS)
    write_text(HERE / "types.md", exactness_report(rows))
    write_text(HERE.parent / "architecture" / "README.md", architecture_report(rows))


if __name__ == "__main__":
    main()
