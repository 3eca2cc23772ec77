"""`UncertaintyRouter`: the clean head for the text that the model knows, the robust head for other text."""

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_warmscale.compat.peft import without_adapter
from hf_warmscale.decoding.members import Member, beside, positions_in
from hf_warmscale.decoding.uncertainty import best_threshold, mean_entropy, mean_kl
from hf_warmscale.decoding.vocabulary import shared_vocabulary
from hf_warmscale.evaluation.cross_entropy import token_nll
from hf_warmscale.refusals import refuse_unknown

Criterion = Literal["kl", "entropy"]
CRITERIA = ("kl", "entropy")


class UncertaintyRouter(nn.Module):
    """Choose, for each sequence, between a model with its adapter off (clean) and on (robust).

    This is the inference of arXiv:2309.07499 for language models, with two deviations: there are two heads and no
    combined one, and uncertainty is the entropy or a divergence between heads instead of Monte-Carlo dropout, since
    language models have none. A sequence is robust if its score is above the threshold:

    | criterion | score, in nats per token, a mean over the sequence |
    |---|---|
    | `"kl"` with a reference | KL(reference, clean) - KL(reference, robust); the threshold is 0 |
    | `"kl"` | KL(robust, clean): how much the heads disagree |
    | `"entropy"` | the entropy of the clean head |

    Args:
        model (`PeftModel`): a causal language model with an adapter.
        reference (`PreTrainedModel`, *optional*): a small robust model of the same vocabulary, on any device.
        criterion (`str`): `"kl"` or `"entropy"`.
        threshold (`float`, *optional*): see `calibrate`.

    Raises:
        ValueError: if the model has no adapter, the criterion is unknown, a reference meets the entropy, is the model
            itself or no decoder, or does not share its vocabulary.

    Example:

    ```python
    >>> router = UncertaintyRouter(model)
    >>> router.calibrate(tokenizer(texts, return_tensors="pt", padding=True) for texts in held_out_mix)
    >>> router.generate(**inputs, max_new_tokens=64)
    ```
    """

    def __init__(
        self,
        model: PeftModel,
        *,
        reference: PreTrainedModel | None = None,
        criterion: Criterion = "kl",
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        refuse_unknown("criterion", criterion, CRITERIA)
        if not isinstance(model, PeftModel):
            raise ValueError(
                f"The model is a {type(model).__name__}, which has no adapter to switch off; pass a PeftModel."
            )
        if reference is not None and reference in (model, model.get_base_model()):
            raise ValueError("The reference is the model itself, adapter and all; pass a small robust model.")
        if criterion == "entropy" and reference is not None:
            raise ValueError('The criterion "entropy" looks at the model alone; leave reference out, or take "kl".')
        self.model, self.reference, self.criterion = model.eval(), reference, criterion
        if reference is not None:
            # With its dropout on, the same sequence would now go one way and now the other.
            self._reference, self._robust = Member("reference", reference.eval()), Member("robust", model)
            self._known = shared_vocabulary([self._robust, self._reference])
        self.threshold = 0.0 if threshold is None and reference is not None else threshold

    @torch.no_grad()
    def scores(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the score of each sequence, `[batch]`; see the class.

        Args:
            input_ids (`Tensor`): `[batch, tokens]`.
            attention_mask (`Tensor`, *optional*): `[batch, tokens]`, 0 where there is padding.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        clean = self._log_probs(input_ids, mask, robust=False)
        if self.criterion == "entropy":
            return mean_entropy(clean, mask)
        robust = self._log_probs(input_ids, mask, robust=True)
        if self.reference is None:
            return mean_kl(robust, clean, mask)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False, "logits_to_keep": 0}
        positions = _positions(self._reference.plain, attention_mask)
        target = beside(self._reference.logits({**inputs, **positions}), self._robust.plain)
        # Models pad the vocabulary to different numbers of rows. What is left is normalised again, or the divergence
        # of two partial distributions could be negative.
        target, clean, robust = (_log_softmax(each[..., : self._known]) for each in (target, clean, robust))
        return mean_kl(target, clean, mask) - mean_kl(target, robust, mask)

    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return a mask `[batch]`: true where the robust head is taken.

        Raises:
            ValueError: if there is no threshold yet.
        """
        if self.threshold is None:
            raise ValueError("The router has no threshold; call calibrate on a held-out mix, or pass threshold=...")
        return self.scores(input_ids, attention_mask) > self.threshold

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Any]) -> float:
        """Set the threshold at which the chosen heads predict a held-out mix best, and return it.

        Args:
            batches (`Iterable[Mapping]`): each with `input_ids` and perhaps `attention_mask`, padded on the right, of
                both the old and the new kind of text.

        Raises:
            ValueError: if there are no sequences.
        """
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for batch in batches:
            ids, mask = batch["input_ids"], batch.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            losses = [self._sequence_nll(ids, mask, robust=robust) for robust in (False, True)]
            found.append((self.scores(ids, mask), losses[0], losses[1]))
        if not found:
            raise ValueError("There are no sequences to calibrate on; pass batches of a held-out mix.")
        self.threshold = best_threshold(*(torch.cat(part) for part in zip(*found, strict=True)))
        return self.threshold

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """Return logits `[batch, tokens, vocabulary]`, each sequence of its own head."""
        robust = self.route(input_ids, attention_mask)
        # A cache would hold the states of one head, and the next call may take the other.
        kwargs = {**kwargs, "use_cache": False}
        heads = [self._run(input_ids, attention_mask, robust=each, **kwargs).logits for each in (False, True)]
        return CausalLMOutputWithPast(logits=torch.where(robust[:, None, None], heads[1], heads[0]))

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Generate with the head that fits each prompt; return token ids `[batch, tokens]`.

        Args:
            input_ids (`Tensor`): `[batch, tokens]`, padded on the left.
            attention_mask (`Tensor`, *optional*): `[batch, tokens]`.
            kwargs: for `generate` of the model; `num_return_sequences` and a streamer need prompts of one head.

        Raises:
            ValueError: if a batch of both heads meets an option that needs one.
        """
        robust = self.route(input_ids, attention_mask)
        groups = [(head, (robust == head).nonzero()[:, 0]) for head in (False, True) if (robust == head).any()]
        for name in ("streamer", "num_return_sequences", "return_dict_in_generate"):
            if len(groups) > 1 and kwargs.get(name) not in (None, 1, False):
                raise ValueError(
                    f"The batch needs both heads, and {name} only works with one; pass prompts one by one."
                )
        generate: Callable[..., Any] = self.model.generate
        # Placeholders, all of which are replaced: every row is in one of the groups.
        rows: list[Tensor] = [input_ids] * len(input_ids)
        for head, indices in groups:
            mask = None if attention_mask is None else attention_mask[indices]
            with self._head(head):
                produced = generate(input_ids=input_ids[indices], attention_mask=mask, **kwargs)
            if len(groups) == 1:
                return cast(Tensor, produced)
            for index, row in zip(indices.tolist(), produced, strict=True):
                rows[index] = row
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._padding())

    def _padding(self) -> int:
        config = self.model.generation_config
        for value in (config.pad_token_id, config.eos_token_id):
            if value is not None:
                return int(value[0] if isinstance(value, list) else value)
        return 0

    def _head(self, robust: bool) -> AbstractContextManager[None]:
        return nullcontext() if robust else without_adapter(self.model)

    def _run(self, input_ids: Tensor, attention_mask: Tensor | None, *, robust: bool, **kwargs: Any) -> Any:
        if "position_ids" not in kwargs:
            kwargs = {**kwargs, **_positions(self.model.get_base_model(), attention_mask)}
        with self._head(robust):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def _log_probs(self, input_ids: Tensor, mask: Tensor, *, robust: bool) -> Tensor:
        return _log_softmax(self._run(input_ids, mask, robust=robust, use_cache=False).logits)

    def _sequence_nll(self, input_ids: Tensor, mask: Tensor, *, robust: bool) -> Tensor:
        logits = self._run(input_ids, mask, robust=robust, use_cache=False).logits
        nll = token_nll(logits[:, :-1], input_ids[:, 1:])
        # A sum, not a mean: the calibration minimises the loss of the mix per token, so long sequences count for more.
        return (nll * mask[:, 1:]).sum(dim=1)


def _positions(model: nn.Module, mask: Tensor | None) -> dict[str, Tensor]:
    """Return positions that count from the first token of each row, as an argument of a model that takes them.

    Without them GPT-2 and its kin look up the position of a token in the padded row: padding on the left shifts all.
    """
    if mask is None or mask.all() or "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": positions_in(mask)}


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
