"""Speculative decoding: measure how many tokens a draft should propose at a time."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class BlockSpeed:
    """The measurement of one block length.

    Args:
        block_length (`int`): tokens that the draft proposes at a time; 0 is no draft.
        tokens_per_second (`float`): generated, with the prefill.
        passes (`int`): forward passes of the combined model.
        accepted (`float`): the share of the proposed tokens that was accepted; NaN without a draft.

    Example:

    ```python
    >>> plain, *drafted = choose_block_length(model, small_tuned, prompts)
    >>> plain.block_length, plain.accepted
    (0, nan)
    >>> print(plain.tokens_per_second, [(row.block_length, row.tokens_per_second) for row in drafted])
    ```
    """

    block_length: int
    tokens_per_second: float
    passes: int
    accepted: float


def choose_block_length(
    model: PreTrainedModel,
    assistant: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    block_lengths: Sequence[int] = (1, 2, 4, 8, 16),
    max_new_tokens: int = 64,
    **options: Any,
) -> list[BlockSpeed]:
    """Measure block lengths on real prompts, set the fastest one on the assistant, and return all of them.

    The best length depends on the hardware, on the ratio of the models' times, and on how often the draft is right:
    nothing but a measurement tells. The first row is the speed without a draft; where that is the fastest, the
    assistant is set to the fastest length all the same.

    Args:
        model (`EmulatedFineTuningForCausalLM`): any model that generates.
        assistant (`PreTrainedModel`): the draft, such as the tuned small model; its generation config is changed.
        prompts (`Sequence[Tensor]`): token ids `[1, tokens]` each.
        block_lengths (`Sequence[int]`): to try.
        max_new_tokens (`int`): per prompt.
        options: for `generate`, such as `do_sample=True`.

    Raises:
        ValueError: if there are no prompts, or a length is below 1.

    Example:

    ```python
    >>> for row in choose_block_length(model, small_tuned, prompts):
    ...     print(row.block_length, row.tokens_per_second, row.accepted)
    ```
    """
    if not prompts or not block_lengths or min(block_lengths) < 1:
        raise ValueError(f"There are {len(prompts)} prompts and the block lengths {list(block_lengths)}; give some.")
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, **options}
    rows = [measure_block_length(model, assistant, prompts, length, **options) for length in (0, *block_lengths)]
    fastest = max(rows[1:], key=lambda row: row.tokens_per_second)
    set_block_length(assistant, fastest.block_length)
    return rows


def set_block_length(assistant: PreTrainedModel, length: int) -> None:
    """Let a draft propose exactly so many tokens at a time."""
    config: Any = assistant.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = length, "constant"
    # Otherwise the draft stops early where it is unsure, and the length would not be the one measured.
    config.assistant_confidence_threshold = 0.0


def measure_block_length(
    model: PreTrainedModel,
    assistant: PreTrainedModel,
    prompts: Sequence[Tensor],
    length: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    **options: Any,
) -> BlockSpeed:
    """Generate from every prompt with one block length, 0 for no draft; see `choose_block_length`."""
    arguments = dict(options)
    if length:
        set_block_length(assistant, length)
        arguments["assistant_model"] = assistant
    generated = 0
    with _counted_passes(model) as passes:
        started = clock()
        for prompt in prompts:
            generated += model.generate(prompt, **arguments).shape[1] - prompt.shape[1]  # type: ignore[operator]
        seconds = clock() - started
    # Every pass adds one token of its own to the accepted ones.
    # A pass over k proposals computes k + 1 positions, so the proposals are the positions minus the passes.
    accepted = (generated - len(passes)) / max(sum(passes) - len(passes), 1) if length else float("nan")
    return BlockSpeed(length, generated / seconds, len(passes), accepted)


@contextmanager
def _counted_passes(model: torch.nn.Module) -> Iterator[list[int]]:
    """Collect the number of new tokens of every forward pass; of a prompt only the positions that are predicted."""
    passes: list[int] = []

    def note(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        kept = kwargs.get("logits_to_keep")
        passes.append(kept if isinstance(kept, int) and kept else int(kwargs["input_ids"].shape[1]))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
