"""Measure the losses on a new domain: small and large, base and tuned, and emulated fine-tuning over beta and top-p.

    python recipes/reproduce/decoding/trend.py --work WORK

Writes `results/trend.json`; domains and seeds whose models are not trained yet are left out and named.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from provenance import provenance
from torch import Tensor
from train import STUDY
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.checkpoints import write_json
from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from hf_warmscale.evaluation.cross_entropy import token_nll

RESULTS = STUDY.with_name("results")
ROWS = 8
"""Windows in a batch."""


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder of train.py")
    work = parser.parse_args().work
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    runs, missing = [], []
    for domain in study["domains"]:
        for seed in study["seeds"]:
            names = members(domain, seed)
            absent = [name for name in names.values() if not (work / "models" / name).exists()]
            missing += absent
            if any(names[role] in absent for role in ("large", "small", "small_tuned")):
                continue
            runs.append({"domain": domain, "seed": seed, **measure(study, work, domain, names)})
            print(domain, seed, runs[-1]["losses"], flush=True)
    verdicts = {domain: verdict([run for run in runs if run["domain"] == domain]) for domain in study["domains"]}
    RESULTS.mkdir(exist_ok=True)
    content = {"verdicts": verdicts, "runs": runs, "missing_models": missing, "provenance": provenance(work)}
    write_json(RESULTS / "trend.json", content)


def members(domain: str, seed: int) -> dict[str, str]:
    """Return the names of the models of a domain and a seed."""
    return {
        "small": f"small-seed{seed}",
        "large": f"large-seed{seed}",
        "small_tuned": f"small_tuned-{domain}-seed{seed}",
        "large_tuned": f"large_tuned-{domain}-seed{seed}",
    }


@torch.no_grad()
def measure(study: dict[str, Any], work: Path, domain: str, names: dict[str, str]) -> dict[str, Any]:
    """Return the losses of all models and of every point of the grid, in nats per token of the domain's validation."""
    models = {role: load(work, name) for role, name in names.items() if (work / "models" / name).exists()}
    emulated = EmulatedFineTuningForCausalLM(models["large"], models["small_tuned"], models["small"])
    grid = [(beta, top_p) for beta in study["trend"]["betas"] for top_p in study["trend"]["upscale_top_p"]]
    singles: dict[str, list[float]] = {role: [] for role in models}
    points: dict[tuple[float, float | None], list[float]] = {point: [] for point in grid}
    for batch in windows(study, work, domain):
        log_probs = emulated.member_log_probs(batch)
        for role, found in zip(("large", "small_tuned", "small"), log_probs, strict=True):
            singles[role].append(loss(found, batch))
        if "large_tuned" in models:
            singles["large_tuned"].append(loss(models["large_tuned"](input_ids=batch).logits, batch))
        for beta, top_p in grid:
            emulated.config.beta, emulated.config.upscale_top_p = beta, top_p
            points[beta, top_p].append(loss(emulated.combine(log_probs), batch))
    losses = {role: float(np.mean(values)) for role, values in singles.items()}
    rows = [
        {"beta": beta, "upscale_top_p": top_p, "loss": float(np.mean(points[beta, top_p]))} for beta, top_p in grid
    ]
    losses["emulated"] = next(row["loss"] for row in rows if (row["beta"], row["upscale_top_p"]) == (1.0, None))
    return {"losses": losses, "gap_closed": gap_closed(losses), "grid": rows}


def gap_closed(losses: dict[str, float]) -> float | None:
    """Return the share of the way from the small tuned to the large tuned model that emulation goes."""
    if "large_tuned" not in losses:
        return None
    return (losses["small_tuned"] - losses["emulated"]) / (losses["small_tuned"] - losses["large_tuned"])


def verdict(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the two differences that would falsify the study, as a mean and by seed."""
    found: dict[str, Any] = {"seeds": [run["seed"] for run in runs]}
    for role in ("small_tuned", "large"):
        differences = [run["losses"]["emulated"] - run["losses"][role] for run in runs]
        found[f"emulated_minus_{role}"] = differences
    holds = bool(runs) and all(max(found[f"emulated_minus_{role}"]) < 0 for role in ("small_tuned", "large"))
    return {**found, "holds": holds}


def load(work: Path, name: str) -> PreTrainedModel:
    """Load a model of the study."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work / "models" / name)
    return model


def windows(study: dict[str, Any], work: Path, domain: str) -> tuple[Tensor, ...]:
    """Return batches of validation windows, evenly spread over the text."""
    tokens = np.load(work / "tokens" / f"{domain}.validation.npy")
    length, count = study["data"]["sequence_length"], study["data"]["validation_windows"]
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64)).split(
        ROWS
    )


def loss(logits: Tensor, batch: Tensor) -> float:
    """Return the mean NLL of a batch of windows of one length."""
    return float(token_nll(logits[:, :-1], batch[:, 1:]).double().mean())


if __name__ == "__main__":
    main()
