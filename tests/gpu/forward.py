"""Forward passes on the device: documents of a packed row stay apart, and documents have the likelihood of the CPU."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from hf_warmscale import document_nll
from hf_warmscale.training.data.collators import collate_packed
from hf_warmscale.training.data.separation import LAYOUTS, separation_of
from tests.evaluation.tiny import tiny_documents, tiny_tokenizer
from tests.gpu.registry import Figures, Machine, SkippedError, check, one_sentence, require
from tests.gpu.stages import llama, placed, shape

LENGTHS = (13, 19)
"""Tokens of the two documents of a row."""

Row = dict[str, Tensor]
Collate = Callable[[list[Row]], Row]


@check
def packing_sdpa(machine: Machine, figures: Figures) -> None:
    """Torch's attention keeps packed documents apart, also in batches of several rows."""
    keep_apart(packing_model(machine, "sdpa"), figures)


@check
def packing_flash(machine: Machine, figures: Figures) -> None:
    """Flash attention does so too; transformers falls back to a kernel of the Hub that is in the cache."""
    if machine.device.type != "cuda":
        raise SkippedError("Flash attention runs on a GPU alone.")
    try:
        model = packing_model(machine, "flash_attention_2")
    except (ImportError, OSError, ValueError) as error:
        raise SkippedError(f"Neither flash-attn nor a kernel of it is installed ({one_sentence(error)}).") from error
    keep_apart(model, figures)


def packing_model(machine: Machine, attention: str) -> LlamaForCausalLM:
    """Return a model with this attention; flash attention knows half precision alone."""
    dtype = torch.bfloat16 if machine.device.type == "cuda" else torch.float32
    model = placed(llama(shape(machine), dtype=dtype, attn_implementation=attention), machine)
    model.eval()
    return model


def keep_apart(model: LlamaForCausalLM, figures: Figures) -> None:
    """Require that the second document of each row does not notice another first one, as the proof says."""
    proved = separation_of(model)
    assert proved is not None
    figures["layout"], bar = proved.layout, torch.finfo(model.dtype).eps
    for count in (1, 3):
        first, second = figures[f"{count} rows"] = changes(model, count, lambda rows: collate_packed(rows, proved))
        require(second <= bar < first, f"The documents of {count} rows change by {first:.2g} and {second:.2g}.")
    for layout in LAYOUTS:
        _, second = figures[layout] = changes(model, 3, partial(laid_out, layout=layout))
        require((second <= bar) is proved.holds_for(layout), f"The proof is wrong on {layout}: {second:.2g}.")
    _, second = figures["mixed"] = changes(model, 3, partial(laid_out, layout="rows", mask=True))
    require(second > 10 * bar, "With a mask of ones the documents do not mix either, so nothing was tested.")


@torch.no_grad()
def changes(model: LlamaForCausalLM, count: int, collate: Collate) -> tuple[float, float]:
    """Return the largest change of a logit of the first and of the second documents, if the first are exchanged.

    Both are relative to the largest logit.
    """
    tokens = torch.randint(model.vocab_size, (count, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    others = tokens.clone()
    others[:, : LENGTHS[0]] = tokens[:, : LENGTHS[0]].add(1).remainder(model.vocab_size)
    before, after = (logits(model, collate(list(map(packed, each)))) for each in (tokens, others))
    change = (before - after).abs().amax(dim=(0, 2)) / before.abs().max()
    first, second = change.split(LENGTHS)
    return float(first.max()), float(second.max())


def packed(tokens: Tensor) -> Row:
    """Return a row of two documents."""
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return {"input_ids": tokens, "position_ids": positions, "labels": tokens.masked_fill(positions == 0, -100)}


def laid_out(rows: list[Row], layout: str, *, mask: bool = False) -> Row:
    """Return a batch of this layout, or with a mask of ones, which hides the documents."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if layout == "end_to_end":
        batch = {name: tensor.reshape(1, -1) for name, tensor in batch.items()}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])} if mask else batch


def logits(model: LlamaForCausalLM, batch: Row) -> Tensor:
    """Return the logits of a batch row by row, `[rows, tokens, vocabulary]`, in float32."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    found: Tensor = model(**inputs, use_cache=False).logits.float()
    return found.reshape(-1, sum(LENGTHS), model.vocab_size)


@check
def likelihood(machine: Machine, figures: Figures) -> None:
    """The documents of an evaluation have the likelihood that they have on the CPU."""
    model, documents, tokenizer = llama(shape(machine)), tiny_documents(), tiny_tokenizer()
    expected = document_nll(model, documents, tokenizer)
    found = document_nll(placed(model, machine), documents, tokenizer)
    rounding = torch.finfo(torch.float32).eps ** 0.5
    figures["difference"] = float(abs(found.nll / expected.nll - 1).max())
    figures["nats_per_token"] = found.mean
    require(figures["difference"] <= rounding, f"A document differs by {figures['difference']:.2g} of its NLL.")
