"""Prompts of single members: the tuned model may see a chat template that the base would not understand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from hf_warmscale.decoding.members import positions_in

FAMILIES = ("tuned", "reference")
"""Whose prompt may differ from that of the base; all tuned models share one."""


@dataclass(frozen=True)
class OwnPrompts:
    """The prompts of members that differ from that of the base, for the whole of a generation.

    Args:
        input_ids (`Mapping[str, Tensor | None]`): `[batch, tokens]` by role, left-padded.
        attention_mask (`Mapping[str, Tensor | None]`): the same shape; ones if missing.
    """

    input_ids: Mapping[str, Tensor | None] = field(default_factory=dict)
    attention_mask: Mapping[str, Tensor | None] = field(default_factory=dict)

    def inputs(self, role: str, input_ids: Tensor, past: int, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a member sees at a step: its own prompt first, then the generated tokens.

        Args:
            role (`str`): of the member.
            input_ids (`Tensor`): `[batch, new tokens]` of this step, for the base.
            past (`int`): tokens in the member's cache.
            shared (`Mapping`): `attention_mask`, `position_ids` and `logits_to_keep` of the base.
        """
        family = role.partition("[")[0]
        prompt = self.input_ids.get(family)
        if prompt is None:
            return {**shared, "input_ids": input_ids}
        mask = self.attention_mask.get(family)
        mask = torch.ones_like(prompt) if mask is None else mask
        # At the first step the member reads its own prompt; after it, the tokens that were generated, the same for
        # all.
        new = prompt if past == 0 else input_ids
        # What is in the cache and new, beyond the member's own prompt.
        generated = past + new.shape[1] - prompt.shape[1]
        mask = torch.cat([mask, mask.new_ones(len(mask), generated)], dim=1)
        positions = positions_in(mask)[:, -new.shape[1] :]
        kept = 1 if past == 0 else shared["logits_to_keep"]  # of a prompt only the last position is comparable
        return {"input_ids": new, "attention_mask": mask, "position_ids": positions, "logits_to_keep": kept}

    def refuse_without_cache(self, cache: Cache | None) -> None:
        """Refuse prompts that would be forgotten after the first step.

        Raises:
            ValueError: if there is no cache.
        """
        if cache is None and any(prompt is not None for prompt in self.input_ids.values()):
            raise ValueError("Prompts of single members need the cache; generate with use_cache=True.")

    @staticmethod
    def refuse_with(arguments: Mapping[str, Any]) -> None:
        """Refuse arguments of `generate` that read the prompt in another way.

        Raises:
            ValueError: naming the argument.
        """
        own = [name for name in arguments if name in {f"{family}_input_ids" for family in FAMILIES}]
        for name in ("assistant_model", "prefill_chunk_size", "prompt_lookup_num_tokens"):
            if own and arguments.get(name) is not None:
                raise ValueError(f"{own[0]} and {name} cannot be combined; leave one of them out.")
