"""Draft tokens with a small model in a bare loop: what speculative decoding needs of `generate`, without its cost.

transformers calls `generate` of the assistant once per draft. It prepares configs, processors and criteria anew each
time, which takes as long as several forward passes of a small model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.candidate_generator import CandidateGenerator

from hf_warmscale.compat.transformers import CACHE_ARGUMENT, croppable_cache
from hf_warmscale.decoding.members import Member, positions_in

TOKENS, CONFIDENCE = 20, 0.4
"""What transformers takes for a draft whose generation config does not say."""


class Draft(CandidateGenerator):
    """Propose tokens with a small model of the same vocabulary (arXiv:2211.17192, algorithm 1).

    The proposals are drawn, or chosen, from the very scores that are returned beside them, so that the verification is
    exact. How many there are is read from the generation config of the assistant: `num_assistant_tokens`,
    `num_assistant_tokens_schedule` and `assistant_confidence_threshold`.

    Args:
        assistant (`Member`): the small model; its cache can be cropped.
        config (`GenerationConfig`): of the generation.
        processors (`Callable`): what the large model's logits pass through too: temperature, top-p, ...
        attention_mask (`Tensor`, *optional*): `[1, prompt tokens]`.
    """

    def __init__(
        self,
        assistant: Member,
        config: GenerationConfig,
        processors: Callable[..., Tensor],
        attention_mask: Tensor | None = None,
    ) -> None:
        own = assistant.plain.generation_config
        assert own is not None
        tokens, confidence = own.num_assistant_tokens, own.assistant_confidence_threshold
        self.length = TOKENS if tokens is None else int(tokens)
        self.confidence = CONFIDENCE if confidence is None else float(confidence)
        self.adapts = own.num_assistant_tokens_schedule in ("heuristic", "heuristic_transient")
        self.assistant, self.config, self.processors, self.prompt_mask = assistant, config, processors, attention_mask
        ends = config.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        # Layers with a sliding window would forget what a rejected draft makes necessary again.
        self.cache = croppable_cache(assistant.config)

    @staticmethod
    def serves(assistant: Member) -> bool:
        """Tell whether a model's cache can forget rejected tokens; a recurrent state cannot be told to here."""
        return assistant.takes_cache and not any(assistant.new_cache().is_linear)

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Any, Any]:
        """Return `input_ids` `[1, tokens]` with the proposals behind them, and their scores `[1, proposals, rows]`."""
        count = min(self.length, self.config.max_length - input_ids.shape[1] - 1)
        if count <= 0:
            return input_ids, None
        self._forget_beyond(input_ids.shape[1] - 1)
        ids, scores = input_ids, []
        for _ in range(count):
            scores.append(self.processors(ids, self._next_logits(ids)))
            token, probability = self._choose(scores[-1])
            ids = torch.cat([ids, token.to(ids.device)], dim=1)
            if probability < self.confidence or int(token) in self.ends:
                break
        return ids, torch.stack(scores, dim=1)

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Propose two more after a draft that was accepted whole and one fewer otherwise, if the schedule says so."""
        if self.adapts:
            self.length = self.length + 2 if num_matches == scores.shape[1] - 1 else max(1, self.length - 1)

    def _forget_beyond(self, length: int) -> None:
        # Of what is cached, the tokens before `length` are sure; the last one given must be run again for its logits.
        if (cached := self.cache.get_seq_length()) > 0:
            self.cache.crop(-max(cached - length, 0))

    def _next_logits(self, ids: Tensor) -> Tensor:
        seen = self.cache.get_seq_length()
        inputs: dict[str, Any] = {"input_ids": ids[:, seen:], CACHE_ARGUMENT: self.cache, "use_cache": True}
        if self.prompt_mask is not None:
            mask = torch.nn.functional.pad(self.prompt_mask, (0, ids.shape[1] - self.prompt_mask.shape[1]), value=1)
            inputs |= {"attention_mask": mask, "position_ids": positions_in(mask)[:, seen:]}
        # To where the ids are: processors such as a repetition penalty read both.
        return self.assistant.logits({**inputs, "logits_to_keep": 1})[:, -1].float().to(ids.device)

    def _choose(self, scores: Tensor) -> tuple[Tensor, float]:
        probabilities = scores.softmax(dim=-1)
        drawn = self.config.do_sample
        token = torch.multinomial(probabilities, 1) if drawn else scores.argmax(dim=-1, keepdim=True)
        return token, float(probabilities.gather(1, token)) if self.confidence else 1.0
