"""Measure a resize: both models on the same tokens."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_warmscale.checkpoints import find_tokenizer
from hf_warmscale.evaluation import evaluation_mode
from hf_warmscale.resize.growing.receipt import Verification

PROBE_TEXT = (
    "A growing town needs water, and the engineers who plan for it look at three things: how many people will live "
    "there in twenty years, how much each of them will use, and what the river can give in a dry summer. Pipes laid "
    "too small must be dug up again; pipes laid too large stand half empty and cost money all the same.\n\n"
    "def capacity(people, litres_per_day, reserve=0.2):\n"
    "    return people * litres_per_day * (1 + reserve)\n"
)

PROBE_SHAPE = (2, 64)
"""Sequences and tokens of the probe for a model without tokenizer."""

FLASH = "flash"
"""In the name of every implementation of attention that does not run everywhere."""

NUDGES = 4
"""Runs of the source that measure what rounding does to it."""

LONGEST_PROBE = 1024
"""Tokens, for a model whose config does not limit the positions."""


def probe_tokens(model: PreTrainedModel, vocab_size: int) -> Tensor:
    """Return token ids `[batch, tokens]` on which to compare models: a short text, or random without a tokenizer.

    Args:
        model (`PreTrainedModel`): the tokenizer is looked for where this model was loaded from.
        vocab_size (`int`): of the smaller model.
    """
    longest = longest_input(model) or LONGEST_PROBE
    if (tokenizer := find_tokenizer(model.config.name_or_path)) is not None:
        tokens = torch.tensor([tokenizer(PROBE_TEXT, verbose=False)["input_ids"][:longest]])
        if int(tokens.max()) < vocab_size:
            return tokens
    random = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (PROBE_SHAPE[0], min(PROBE_SHAPE[1], longest)), generator=random)


def longest_input(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model can read; `None` if its config sets no limit.

    RoBERTa and its like begin to count positions behind the padding token, so that many rows of their table are lost.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    lost = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None
    ]
    return positions - max(lost, default=0) if positions else None


def compare_models(
    source: PreTrainedModel,
    target: PreTrainedModel,
    layer_path: str,
    tokens: Tensor,
    stored: Iterable[torch.dtype] = (),
    *,
    exact: bool = False,
) -> Verification | None:
    """Compare two models on the same tokens, over the vocabulary of the smaller one.

    Returns `None`, with a warning, if a logit or an activation is not finite.

    Args:
        source (`PreTrainedModel`): the source.
        target (`PreTrainedModel`): the model that was made from it.
        layer_path (`str`): the path of the list of blocks.
        tokens (`Tensor`): token ids `[batch, tokens]`.
        stored (`Iterable[torch.dtype]`): of the target's weights, where the models run in a wider dtype.
        exact (`bool`): only rounding should tell the models apart, so what it can do is measured where in doubt.
    """
    before, rms_before = _run(source, layer_path, tokens)
    after, rms_after = _run(target, layer_path, tokens)
    known = min(before.shape[-1], after.shape[-1])
    # New tokens have logits of their own, so distributions are compared over the old ones.
    before, after = before[..., :known], after[..., :known]
    divergence = nn.functional.kl_div(
        after.double().log_softmax(-1), before.double().log_softmax(-1), log_target=True, reduction="none"
    )
    largest = float((before.double() - after.double()).abs().max())
    if not all(math.isfinite(value) for value in (largest, *rms_before, *rms_after)):
        warnings.warn(
            f"In {target.dtype} a logit or an activation is not finite on the probe, so the models were not compared; "
            "load them in bfloat16 or float32.",
            stacklevel=4,
        )
        return None
    epsilon = coarsest_epsilon({before.dtype, after.dtype, *stored})
    expected = epsilon**0.5 * float(before.abs().max())
    if exact and largest > expected:
        expected = max(expected, measured_rounding(source, layer_path, tokens, before, epsilon))
    return Verification(
        tokens=tokens.numel(),
        max_abs_logit_difference=largest,
        rounding=expected,
        kl_divergence=max(float(divergence.sum(-1).mean()), 0.0),
        activation_rms={"source": rms_before, "target": rms_after},
    )


def coarsest_epsilon(dtypes: Iterable[torch.dtype]) -> float:
    """Return the relative rounding error of the coarsest of some dtypes; norms compute in float32 at best."""
    return max(torch.finfo(dtype).eps for dtype in (*dtypes, torch.float32))


def measured_rounding(
    model: PreTrainedModel, layer_path: str, tokens: Tensor, logits: Tensor, epsilon: float
) -> float:
    """Return the largest difference of a logit when what enters each block is moved up or down by its rounding.

    A rounding error can make a router pick another expert, which moves logits more than any bound from epsilon says.

    Args:
        model (`PreTrainedModel`): the source.
        layer_path (`str`): the path of the list of blocks.
        tokens (`Tensor`): token ids `[batch, tokens]`.
        logits (`Tensor`): of the model for these, `[batch, tokens, vocab]`; a part of the vocabulary may be left out.
        epsilon (`float`): the relative rounding error.
    """
    random = torch.Generator().manual_seed(0)
    moved = 0.0
    for _ in range(NUDGES):
        with _nudged(model.get_submodule(layer_path).children(), epsilon, random):
            nudged, _ = _run(model, layer_path, tokens)
        moved = max(moved, float((nudged[..., : logits.shape[-1]].double() - logits.double()).abs().max()))
    return moved


@contextmanager
def _nudged(blocks: Iterable[nn.Module], epsilon: float, random: torch.Generator) -> Iterator[None]:
    def nudge(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        stream = args[0] if args else kwargs["hidden_states"]
        sign = torch.randint(2, stream.shape, generator=random) * 2 - 1
        moved = (stream * (1 + epsilon * sign.to(stream.device))).to(stream.dtype)
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

    handles = [block.register_forward_pre_hook(nudge, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _run(model: PreTrainedModel, layer_path: str, tokens: Tensor) -> tuple[Tensor, list[float]]:
    rms: list[float] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Sequence[Tensor]) -> None:
        stream = output if isinstance(output, Tensor) else output[0]
        rms.append(float(stream.cpu().double().square().mean().sqrt()))

    handles = [block.register_forward_hook(record) for block in model.get_submodule(layer_path).children()]
    attention = model.config._attn_implementation
    try:
        if FLASH in attention:  # knows only half precision on a GPU
            model.set_attn_implementation("eager")
        with evaluation_mode(model):
            logits = model(input_ids=tokens.to(model.device), use_cache=False).logits
    finally:
        model.set_attn_implementation(attention)
        for handle in handles:
            handle.remove()
    return logits.cpu(), rms
