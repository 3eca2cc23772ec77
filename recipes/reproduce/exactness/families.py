"""The exactness table: family x operator x tied or not, in float64, float32 and bfloat16, after a reload too.

    python recipes/reproduce/exactness/families.py             # resumes; about ten minutes of one core
    python recipes/reproduce/exactness/families.py --report

The families and their sizes are those of the tests. Each row is one JSON file in `families/`.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import is_exact, measure, random_model
from tqdm import tqdm

from hf_warmscale.checkpoints import write_json, write_text
from hf_warmscale.report import markdown_table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.resize.families import FAMILIES  # noqa: E402  # the small configs of the tests

WIDER = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8}
OPERATORS: Mapping[str, Mapping[str, Any]] = {
    "clone": {**WIDER, "num_key_value_heads": 4},
    "clone, key heads fixed": WIDER,
    "zero_pad": {"hidden_size": 48, "intermediate_size": 56, "width": "zero_pad"},
    "identity": {"num_hidden_layers": 4, "depth": "identity"},
    "clone and identity": {**WIDER, "num_hidden_layers": 3, "depth": "identity"},
    "zero_pad and identity": {"hidden_size": 48, "num_hidden_layers": 3, "depth": "identity", "width": "zero_pad"},
}


def row_of(family: str, operator: str, tied: bool) -> dict[str, Any] | None:
    """Return the row of one growth; `None` where the family has no key-value heads of its own to leave as they are."""
    config = FAMILIES[family](tied)
    growth = dict(OPERATORS[operator])
    if "num_key_value_heads" not in config.to_dict():
        if operator == "clone, key heads fixed":
            return None
        growth.pop("num_key_value_heads", None)
    row = measure(random_model(config), growth)
    return {"family": family, "operator": operator, "tied": tied, **row, "exact": is_exact(row)}


def report() -> None:
    """Make the table of what is stored."""
    rows = [json.loads(path.read_text()) for path in sorted((HERE / "families").glob("*.json"))]
    columns = ("fp64 patched", "fp64", "fp32", "KL bf16")
    table = [
        {"family": row["family"], "operator": row["operator"], "tied": "yes" if row["tied"] else "no"}
        | {name: f"{max(row[name], row[f'{name}, reloaded']):.0e}" for name in columns}
        | {"exact": "yes" if row["exact"] else "no"}
        for row in rows
        if "fp64" in row
    ]
    write_text(
        HERE / "families.md",
        "# Exactness, family by family\n\n    python recipes/reproduce/exactness/families.py\n\n"
        "The largest |difference of a logit|, the larger of before and after save and reload, every parameter moved "
        "by N(0, 0.1) first. Patched: norms and softmax in float64 too. Exact: <= 1e-11, 5e-6, 2e-4. KL in nats. "
        f"{sum(row['exact'] == 'yes' for row in table)} of {len(table)} rows are exact.\n\n" + markdown_table(table),
    )


def main() -> None:
    """Measure what is missing, and make the table."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only make the table")
    (HERE / "families").mkdir(exist_ok=True)
    if not parser.parse_args().report:
        wanted = [(family, name, tied) for name in OPERATORS for family in FAMILIES for tied in (True, False)]
        for family, operator, tied in tqdm(wanted):
            name = f"{family}-{operator.replace(', ', '-').replace(' ', '-')}-{'tied' if tied else 'untied'}"
            target = HERE / "families" / f"{name}.json"
            if not target.exists() and (row := row_of(family, operator, tied)) is not None:
                write_json(target, row)
    report()


if __name__ == "__main__":
    main()
