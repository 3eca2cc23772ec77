"""Describe every type of transformers' causal-LM mapping, and say what is refused and why.

    python recipes/reproduce/architecture/describe_all.py

writes `describe_all.json` and `README.md` beside this file. Each type is described at its default config, or, where
that builds no model, with the usual sizes set. No weights are needed; about fifteen minutes on one core. With
`--refused`, only what was refused before is tried again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import transformers
from tqdm import tqdm
from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_warmscale.architecture import Axis, ModelMap, describe, find_field, resized_config
from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.report import markdown_table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from every_type import EVERY_TYPE, SHOWN, USUAL, OutOfTimeError, be_quiet, cpu_limit, one_line  # noqa: E402

CPU_SECONDS = 90


def describe_type(model_type: str) -> dict[str, Any]:
    start = time.process_time()
    row: dict[str, Any] = {"model type": model_type}
    try:
        config = CONFIG_MAPPING[model_type]()
    except Exception as error:  # whatever the family's own code raises
        reason = f"its config has no default: {type(error).__name__}: {one_line(error)}"
        return row | {"result": "refused", "reason": reason, "CPU seconds": 0.0}
    try:
        with cpu_limit(CPU_SECONDS):
            model_map = describe_somehow(config)
    except (ValueError, OutOfTimeError) as error:
        row |= {"result": "refused", "reason": one_line(error)}
    except Exception as error:
        row |= {"result": "crashed", "reason": f"{type(error).__name__}: {one_line(error)}"}
    else:
        row |= {
            "result": "proved",
            "tensors": len(model_map.parameters),
            "parameters": model_map.num_parameters(),
            "largest error": max(model_map.proof.values()),
            "errors": {axis.value: error for axis, error in model_map.proof.items()},
        }
    return row | {"CPU seconds": round(time.process_time() - start, 2)}


def describe_somehow(config: PreTrainedConfig) -> ModelMap:
    try:
        return describe(config)
    except ValueError as error:
        if "no causal LM can be built" not in str(error):
            raise
        sizes = {axis: size for axis, size in USUAL.items() if settable(config, axis)}
        try:
            usual = resized_config(config, sizes)
        except Exception:  # the family's own code refuses these sizes: what is said is why the default was refused
            raise error from None
        return describe(usual)


def settable(config: PreTrainedConfig, axis: Axis) -> bool:
    return axis is Axis.HEAD_DIM or find_field(config, axis) is not None


def errors_of(row: dict[str, Any]) -> dict[str, str]:
    return {"model type": row["model type"]} | {
        axis.value: f"{row['errors'][axis.value]:.0e}" if axis.value in row["errors"] else "" for axis in Axis
    }


def main() -> None:
    be_quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refused", action="store_true", help="only try again what was refused before")
    refused_only = parser.parse_args().refused
    before = json.loads((HERE / "describe_all.json").read_text()) if refused_only else []
    known = {row["model type"]: row for row in before if row["result"] == "proved"}
    rows = [known.get(name) or describe_type(name) for name in tqdm(EVERY_TYPE)]
    write_json(HERE / "describe_all.json", json.loads(json.dumps(rows)))
    proved = [row for row in rows if row["result"] == "proved"]
    others = [row for row in rows if row["result"] != "proved"]
    columns = ("model type", "tensors", "parameters", "largest error", "CPU seconds")
    write_text(
        HERE / "README.md",
        f"# `describe()` over all causal LMs of transformers {transformers.__version__}\n\n"
        f"{len(proved)} of {len(rows)} types are described and proved; "
        f"{len([row for row in others if row['result'] == 'crashed'])} crash. "
        "Every parameter is classified; the error is the largest change of a logit, relative to the largest logit, "
        "when one axis is permuted wherever the map names it, in float64 on a tiny copy of the architecture.\n\n"
        "    python recipes/reproduce/architecture/describe_all.py\n\n## Axis by axis\n\n"
        + markdown_table([errors_of(row) for row in proved if row["model type"] in SHOWN])
        + "\n## Proved\n\n"
        + markdown_table([{column: row[column] for column in columns} for row in proved])
        + "\n## Refused\n\n"
        + markdown_table([{"model type": row["model type"], "reason": row["reason"]} for row in others]),
    )


if __name__ == "__main__":
    main()
