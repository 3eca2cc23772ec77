"""What is measured beside the losses: the adapter off, the router, the twin without training, WiSE-FT."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import load_tokenizer, plain
from peft import PeftModel
from runs import Run
from torch import Tensor

from hf_warmscale import EmulatedFineTuningForCausalLM, UncertaintyRouter
from hf_warmscale.compat.peft import without_adapter
from hf_warmscale.evaluation.cross_entropy import token_nll
from hf_warmscale.merging import sweep_alphas
from hf_warmscale.training.data.packing import load_packed

sys.path.insert(0, str(Path(__file__).parent.parent / "corpora"))
import corpora as text

BATCH = 32


def judge(design: dict[str, Any], run: Run, work: Path, model: PeftModel) -> dict[str, Any]:
    """Return whether the model without its adapter is the base, and what a router between the two gives."""
    base = plain(work / "models" / f"large-seed{run.seed}").eval()
    model.eval()
    rows = {name: sequences(design, work, domain) for name, domain in domains(design).items()}
    same = True
    for ids in rows.values():
        with torch.no_grad(), without_adapter(model):
            same = same and torch.equal(model(input_ids=ids[:BATCH]).logits, base(input_ids=ids[:BATCH]).logits)
    router = UncertaintyRouter(model, reference=plain(work / "models" / f"teacher-seed{run.seed}").eval())
    heads: dict[str, Callable[[Tensor], Tensor]] = {
        "off": lambda ids: base(input_ids=ids).logits,
        "on": lambda ids: model(input_ids=ids).logits,
        "routed": lambda ids: router(ids).logits,
    }
    found = {head: {name: loss(logits, ids) for name, ids in rows.items()} for head, logits in heads.items()}
    routed = {name: share_on(router, ids) for name, ids in rows.items()}
    return {"adapter_off_is_the_base": same, "heads": found, "routed_to_the_adapter": routed}


def measure(design: dict[str, Any], run: Run, work: Path) -> dict[str, float]:
    """Return the losses of emulated fine-tuning: large base + (teacher - small base), without training."""
    members = [plain(work / "models" / f"{name}-seed{run.seed}") for name in ("large", "teacher", "small")]
    model = EmulatedFineTuningForCausalLM(base=members[0], tuned=members[1], reference=members[2])
    return {
        name: loss(lambda ids: model(input_ids=ids).logits, sequences(design, work, domain))
        for name, domain in domains(design).items()
    }


def sweep(design: dict[str, Any], run: Run, corpora: Path, work: Path) -> dict[str, Any]:
    """Score the line from the large base to the model that was tuned without replay (WiSE-FT)."""
    halves: list[dict[str, list[str]]] = [{}, {}]
    for name, domain in domains(design).items():
        documents = [
            document[: design["document_letters"]] for document in text.documents(corpora, "validation", [domain])
        ]
        for half, part in enumerate(halves):
            part[name] = documents[half::2][: design["documents"]]
    ends = [work / "models" / f"{name}-seed{run.seed}" for name in ("large", "full-no-replay")]
    found = sweep_alphas(
        *ends, select=halves[0], confirm=halves[1], alphas=design["alphas"], tokenizer=load_tokenizer(work)
    )
    return found.to_dict()


def domains(design: dict[str, Any]) -> dict[str, str]:
    """Return both domains by what the results call them."""
    return {"old": design["base"], "new": design["shift"]}


def sequences(design: dict[str, Any], work: Path, domain: str) -> Tensor:
    """Return validation rows as plain sequences, `[rows, tokens]`: a router judges a whole sequence."""
    rows, count = load_packed(work / "rows" / f"{domain}.validation"), design["evaluation_rows"]
    chosen = rows.select(sorted({index * len(rows) // count for index in range(count)}))
    return torch.stack([torch.as_tensor(row["input_ids"]).long() for row in chosen])


@torch.no_grad()
def loss(logits: Callable[[Tensor], Tensor], ids: Tensor) -> float:
    """Return nats per token."""
    parts = [token_nll(logits(part)[:, :-1], part[:, 1:]) for part in ids.split(BATCH)]
    return float(torch.cat(parts).double().mean())


def share_on(router: UncertaintyRouter, ids: Tensor) -> float:
    """Return the share of sequences that the adapter answers."""
    return float(torch.cat([router.route(part) for part in ids.split(BATCH)]).double().mean())
