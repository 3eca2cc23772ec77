"""Measure the losses on a new domain: small and large, base and tuned, and emulated fine-tuning over beta and top-p.

    python recipes/reproduce/decoding/trend.py --corpora CORPORA --work WORK

Writes `results/trend.json`; domains and seeds whose models are not trained yet are left out and named.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from train import HERE, RESULTS, STUDY, hash_of, list_runs, load_tokenizer, text
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from hf_warmscale.evaluation import DocumentNLL, paired_bootstrap
from hf_warmscale.evaluation.cross_entropy import token_nll
from hf_warmscale.studies import write_result

ROWS = 16
"""Windows in a batch."""
PER_DOCUMENT = 16
"""The most windows of one document, so that a long one does not decide."""


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of <domain>.<split>.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="the folder of train.py")
    arguments = parser.parse_args()
    design = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    runs = []
    missing = [run.name for run in list_runs(design) if not (arguments.work / "models" / run.name).exists()]
    for domain in design["domains"]:
        held_out = windows(design, arguments.corpora, arguments.work, domain)
        for seed in design["seeds"]:
            names = members(domain, seed)
            if set(missing).isdisjoint(names.values()):
                runs.append({"domain": domain, "seed": seed, **measure(design, arguments.work, names, held_out)})
                print(domain, seed, runs[-1]["losses"], flush=True)
    verdicts = {domain: verdict([run for run in runs if run["domain"] == domain]) for domain in design["domains"]}
    content = {"verdicts": verdicts, "runs": runs, "missing_models": missing}
    write_result(RESULTS / "trend.json", {**content, "tokens": hash_of(design, arguments.work)}, code=HERE)
    print(verdicts)


def members(domain: str, seed: int) -> dict[str, str]:
    """Return the names of the models of a domain and a seed."""
    return {
        "small": f"small-seed{seed}",
        "large": f"large-seed{seed}",
        "small_tuned": f"small_tuned-{domain}-seed{seed}",
        "large_tuned": f"large_tuned-{domain}-seed{seed}",
    }


@dataclass(frozen=True)
class Windows:
    """The text of a comparison.

    Args:
        tokens (`Tensor`): `[windows, sequence length]`, one behind the other in their documents.
        documents (`NDArray`): `[windows]`, the number of the document of each.
    """

    tokens: Tensor
    documents: NDArray[Any]

    def scores(self, losses: NDArray[Any]) -> DocumentNLL:
        """Return the mean losses `[windows]` as losses of whole documents, which intervals are over."""
        predicted = self.tokens.shape[1] - 1
        tokens = np.bincount(self.documents) * predicted
        nll = np.bincount(self.documents, weights=losses * predicted)
        return DocumentNLL(nll, tokens, tokens, tuple(str(number) for number in range(len(tokens))))


def windows(design: dict[str, Any], corpora: Path, work: Path, domain: str) -> Windows:
    """Cut the validation documents of a domain into windows; what is shorter than one is left out."""
    tokenizer, length = load_tokenizer(work), design["sequence_length"]
    rows: list[list[int]] = []
    documents: list[int] = []
    for document in text.documents(corpora, "validation", [domain]):
        ids = tokenizer(document)["input_ids"]
        cut = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)][:PER_DOCUMENT]
        number = documents[-1] + 1 if documents else 0
        rows += cut
        documents += [number] * len(cut)
    return Windows(torch.tensor(rows), np.array(documents))


@torch.no_grad()
def measure(design: dict[str, Any], work: Path, names: dict[str, str], held_out: Windows) -> dict[str, Any]:
    """Return the losses of all models and of every point of the grid, in nats per token."""
    models = {role: load(work, name) for role, name in names.items()}
    emulated = EmulatedFineTuningForCausalLM(models["large"], models["small_tuned"], models["small"])
    grid = [(beta, top_p) for beta in design["trend"]["betas"] for top_p in design["trend"]["upscale_top_p"]]
    singles: dict[str, list[NDArray[Any]]] = {role: [] for role in models}
    points: dict[tuple[float, float | None], list[NDArray[Any]]] = {point: [] for point in grid}
    for batch in held_out.tokens.split(ROWS):
        log_probs = emulated.member_log_probs(batch)
        for role, found in zip(("large", "small_tuned", "small"), log_probs, strict=True):
            singles[role].append(losses_of(found, batch))
        singles["large_tuned"].append(losses_of(models["large_tuned"](input_ids=batch).logits, batch))
        for beta, top_p in grid:
            emulated.config.beta, emulated.config.upscale_top_p = beta, top_p
            points[beta, top_p].append(losses_of(emulated.combine(log_probs), batch))
    by_point = {point: held_out.scores(np.concatenate(values)) for point, values in points.items()}
    scores = {role: held_out.scores(np.concatenate(values)) for role, values in singles.items()}
    scores["emulated"] = by_point[1.0, None]
    losses = {role: each.mean for role, each in scores.items()}
    rows = [{"beta": beta, "upscale_top_p": top_p, "loss": by_point[beta, top_p].mean} for beta, top_p in grid]
    intervals = {
        role: paired_bootstrap(scores["emulated"], scores[role]).to_dict() for role in ("small_tuned", "large")
    }
    chosen = chosen_beta({beta: by_point[beta, None] for beta in design["trend"]["betas"]})
    texts = {"documents": len(scores["small"]), "windows": len(held_out.documents)}
    return {
        "losses": losses, "emulated_minus": intervals, "gap_closed": gap_closed(losses), "chosen": chosen,
        "grid": rows, **texts,
    }  # fmt: skip


def chosen_beta(scores: dict[float, DocumentNLL]) -> dict[str, Any]:
    """Choose beta on every other document; return its loss on the rest, minus that of the small tuned model."""
    beta = min(scores, key=lambda each: every_other(scores[each], 0).mean)
    difference = paired_bootstrap(every_other(scores[beta], 1), every_other(scores[0.0], 1))
    return {"beta": beta, "minus_small_tuned": difference.to_dict()}


def every_other(scores: DocumentNLL, first: int) -> DocumentNLL:
    """Return the scores of one half of the documents."""
    half = slice(first, None, 2)
    return DocumentNLL(scores.nll[half], scores.tokens[half], scores.bytes[half], scores.digests[half])


def gap_closed(losses: dict[str, float]) -> float:
    """Return the share of the way from the small tuned to the large tuned model that emulation goes."""
    return (losses["small_tuned"] - losses["emulated"]) / (losses["small_tuned"] - losses["large_tuned"])


def verdict(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the two differences that would falsify the study by seed, and the share of the gap."""
    found: dict[str, Any] = {"seeds": [run["seed"] for run in runs]}
    for role in ("small_tuned", "large"):
        found[f"emulated_minus_{role}"] = [run["losses"]["emulated"] - run["losses"][role] for run in runs]
    holds = bool(runs) and all(max(found[f"emulated_minus_{role}"]) < 0 for role in ("small_tuned", "large"))
    return {**found, "gap_closed": [run["gap_closed"] for run in runs], "holds": holds}


def load(work: Path, name: str) -> PreTrainedModel:
    """Load a model of the study."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work / "models" / name)
    return model


def losses_of(logits: Tensor, batch: Tensor) -> NDArray[Any]:
    """Return the mean NLL `[windows]` of windows of one length."""
    found: NDArray[Any] = token_nll(logits[:, :-1], batch[:, 1:]).double().mean(dim=1).numpy()
    return found


if __name__ == "__main__":
    main()
