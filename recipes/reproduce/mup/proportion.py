"""Coordinate checks where the widths do not grow in proportion: one grows alone, or one stays.

    python recipes/reproduce/mup/proportion.py --rows ROWS            # resumes; about five minutes of one core
    python recipes/reproduce/mup/proportion.py --report

ROWS are packed rows of 128 tokens over a vocabulary of at most 1,024: `warmscale data pack`, or those that
`recipes/reproduce/decoding/train.py` makes of the documentation. Each way to widen the model is one JSON in
`results/proportion`; from them comes `results/proportion.md`.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_warmscale.checkpoints import write_text
from hf_warmscale.mup import MupConfig, MupForCausalLM, mup_param_groups
from hf_warmscale.report import markdown_table
from hf_warmscale.studies.provenance import provenance_line
from hf_warmscale.studies.study import read_runs, write_result
from hf_warmscale.tuning import ProxyTask
from hf_warmscale.tuning.coordinate_result import fit_slopes
from hf_warmscale.tuning.coordinates import measure

HERE = Path(__file__).parent / "results"
BASE = {"hidden_size": 32, "intermediate_size": 88, "num_attention_heads": 2, "num_key_value_heads": 2}
MODEL: Mapping[str, Any] = {
    "vocab_size": 1024,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
WIDENED: Mapping[str, Sequence[str]] = {
    "all": tuple(BASE),
    "hidden": ("hidden_size",),
    "intermediate": ("intermediate_size",),
    "heads": ("num_attention_heads", "num_key_value_heads"),
    "all but key-value heads": ("hidden_size", "intermediate_size", "num_attention_heads"),
}
FACTORS = (1, 2, 4, 8)
BEYOND = {"hidden": (16,)}
"""Further factors where they cost little."""
SEEDS, STEPS, LR = 5, 10, 2**-9
SHOWN = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def config_of(kind: str, factor: int) -> MupConfig:
    widths = {field: size * (factor if field in WIDENED[kind] else 1) for field, size in BASE.items()}
    base = {f"base_{field}": size for field, size in BASE.items()} | {"base_num_hidden_layers": 2}
    return MupConfig(**MODEL, **widths, mup={**base, "zero_init_query": True, "zero_init_readout": True})


def run(kind: str, factor: int, seed: int, task: ProxyTask) -> dict[str, list[float]]:
    torch.manual_seed(seed)
    model = MupForCausalLM(config_of(kind, factor))
    optimizer = torch.optim.AdamW(mup_param_groups(model, lr=LR), betas=task.betas)
    return measure(model, optimizer, task, "width", STEPS, seed)


def measured(kind: str, task: ProxyTask) -> dict[str, Any]:
    factors = (*FACTORS, *BEYOND.get(kind, ()))
    runs = {factor: [run(kind, factor, seed, task) for seed in range(SEEDS)] for factor in factors}
    first = {factor: runs[factor] for factor in FACTORS}
    whole = fit_slopes(first, label=kind, axis="width")
    single = [
        fit_slopes({factor: [seeds[seed]] for factor, seeds in first.items()}, label=kind, axis="width").slopes
        for seed in range(SEEDS)
    ]
    everything = fit_slopes(runs, label=kind, axis="width")
    return {
        "kind": kind,
        "slopes": whole.slopes,
        "slopes of seeds": {name: [each[name] for each in single] for name in whole.slopes},
        "changes": {
            name: {str(factor): steps[-1] for factor, steps in by_factor.items()}
            for name, by_factor in everything.changes.items()
        },
    }


def report() -> None:
    rows = read_runs(HERE / "proportion")
    by_kind = {row["kind"]: row for row in rows}
    slopes, doublings = [], []
    for kind in WIDENED:
        if kind not in by_kind:
            continue
        row = by_kind[kind]
        for name in (*(name for name in row["slopes"] if name.endswith(SHOWN)), "logits"):
            seeds = row["slopes of seeds"][name]
            changes = {int(factor): value for factor, value in row["changes"][name].items()}
            line = {"widened": kind, "activation": name.removeprefix("model.")}
            slopes.append(
                {**line, "slope": f"{row['slopes'][name]:+.3f}", "seeds": f"{min(seeds):+.3f} to {max(seeds):+.3f}"}
            )
            steps = {
                f"x{small} to x{large}": f"{log2(changes[large] / changes[small]) / log2(large / small):+.2f}"
                for small, large in pairwise(sorted(changes))
            }
            doublings.append({**line, **steps})
    columns = list(dict.fromkeys(column for line in doublings for column in line))
    write_text(
        HERE / "proportion.md",
        "# Widths that do not grow in proportion\n\n    python recipes/reproduce/mup/proportion.py --rows ROWS\n\n"
        f"{provenance_line(rows)}. CompleteP, base width 32, 2 blocks, {STEPS} steps at 2^{log2(LR):.0f} of real "
        f"text, {SEEDS} seeds, factors {', '.join(map(str, FACTORS))}; the slope of log(change) over log(factor).\n\n"
        + markdown_table(slopes)
        + "\n## From factor to factor\n\nThe slope between neighbouring factors, of the medians over seeds.\n\n"
        + markdown_table([{column: line.get(column, "") for column in columns} for line in doublings]),
    )


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="packed rows")
    parser.add_argument("--only", nargs="*", choices=tuple(WIDENED), help="these ways, again")
    parser.add_argument("--report", action="store_true", help="only make the table")
    arguments = parser.parse_args()
    for kind in () if arguments.report else arguments.only or WIDENED:
        target = HERE / "proportion" / f"{kind.replace(' ', '-')}.json"
        if arguments.only or not target.is_file():
            task = ProxyTask(arguments.rows, steps=STEPS, batch_size=8, warmup_steps=1, validation_rows=8)
            write_result(target, {**measured(kind, task), "tokens": task.tokens_hash()}, code=Path(__file__).parent)
    report()


if __name__ == "__main__":
    main()
