"""`EmulatedFineTuningForCausalLM`: a large base steered by what a small model learnt in fine-tuning."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_warmscale.checkpoints import staged_directory
from hf_warmscale.compat.transformers import CACHE_ARGUMENT
from hf_warmscale.decoding.cache import cover_all, refuse_states_that_stay, views
from hf_warmscale.decoding.combination import combine_log_probs
from hf_warmscale.decoding.configuration import EmulatedFineTuningConfig
from hf_warmscale.decoding.draft import Draft
from hf_warmscale.decoding.members import Member, Model, beside
from hf_warmscale.decoding.prompts import OwnPrompts
from hf_warmscale.decoding.saving import load_member, load_members, write_by_member
from hf_warmscale.decoding.vocabulary import refuse_another_vocabulary, shared_vocabulary

PUSH = "call hf_warmscale.push_to_hub(model, repo_id), which checks that all members can be loaded from the Hub"


class EmulatedFineTuningForCausalLM(PreTrainedModel, GenerationMixin):
    """Combine a large base, a small base and small tuned models at every step (arXiv:2310.12962; proxy-tuning is
    arXiv:2401.08565).

    The log-probabilities are `s + sum_i w_i (t_i - s) + beta (l - s)`, normalised, with l of `base`, s of `reference`
    and t_i of `tuned`. The members stay the objects that were passed, in evaluation mode; no weight is copied.

    | settings | name |
    |---|---|
    | `weights=[1]`, `beta=1` | emulated fine-tuning, up-scaling |
    | `weights=[a]`, `beta=1` | proxy-tuning with strength a |
    | `weights=[a, 1 - a]`, two tuned models | interpolation of their rewards |
    | `beta > 1` | amplified up-scaling |
    | `beta=0` | the tuned small model, or the interpolation of several |
    | `base` small, `reference` and `tuned` large | down-scaling |

    `generate` works as with any model. `assistant_model=tuned` is speculative decoding: it draws from the same
    distribution, in fewer passes of the large base. `tuned_input_ids` and `tuned_attention_mask` (and the same with
    `reference_`) give a member a prompt of its own, such as one with a chat template; such prompts cannot be combined
    with an assistant. Members may differ in dtype, quantization and device: each runs as it is, and the combination,
    on the device of the base, is computed in float32 at least. The cache must be a `DynamicCache`.

    Args:
        base (`PreTrainedModel`): the large base model.
        tuned (`PreTrainedModel`, `PeftModel` or a list of them): small tuned models.
        reference (`PreTrainedModel`, *optional*): the small base that they were tuned from. Without one, the first
            tuned model must have an adapter, and is run again with it switched off.
        weights (`Sequence[float]`, *optional*): one per tuned model; by default equal shares of 1.
        beta (`float`): see above; 0 to leave the large base out.
        upscale_top_p (`float`, *optional*): add `beta (l - s)` only to the nucleus of the tuned small model.

    Raises:
        ValueError: if the models do not share a vocabulary, one of them is not a decoder or has no weights in memory,
            or a setting is out of range.

    Example:

    ```python
    >>> model = EmulatedFineTuningForCausalLM(base=large, tuned=small_tuned, reference=small)
    >>> model.generate(**inputs, max_new_tokens=64, assistant_model=small_tuned)
    ```
    """

    config_class = EmulatedFineTuningConfig
    config: EmulatedFineTuningConfig
    main_input_name = "input_ids"

    def __init__(
        self,
        base: Model,
        tuned: Model | Sequence[Model],
        reference: Model | None = None,
        weights: Sequence[float] | None = None,
        beta: float = 1.0,
        upscale_top_p: float | None = None,
    ) -> None:
        small = [tuned] if isinstance(tuned, nn.Module) else list(tuned)
        members = _members(base, small, reference)
        config = EmulatedFineTuningConfig(
            weights=None if weights is None else list(weights), beta=beta, upscale_top_p=upscale_top_p
        )
        config.checked_weights(len(small))
        known = shared_vocabulary(members)
        windows = [member.window for member in members if member.window is not None]
        # The tuned model is the usual draft in assisted generation, and a draft must have as many logits as the model
        # it drafts for.
        config.shared_with(members[0].config, vocab_size=members[1].rows, window=min(windows) if windows else None)
        super().__init__(config)
        self.base, self.tuned, self.reference = base, nn.ModuleList(small), members[-1].model
        self._members, self._known = tuple(members), known
        self.generation_config = _token_ids_of(members[1].plain, members[0].plain)
        self.eval()  # type: ignore[no-untyped-call]

    @classmethod
    def from_members(
        cls,
        base: str | os.PathLike[str],
        tuned: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        reference: str | os.PathLike[str] | None = None,
        *,
        weights: Sequence[float] | None = None,
        beta: float = 1.0,
        upscale_top_p: float | None = None,
        **options: Any,
    ) -> Self:
        """Load the members by name, keeping their revisions for `save_pretrained`.

        Args:
            base, tuned, reference (`str` or `PathLike`): folders, Hub ids or `id@revision`; `tuned` may be a list, and
                a folder may hold an adapter.
            weights, beta, upscale_top_p: see the class.
            options: for every member's `AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, ...

        Raises:
            FileNotFoundError: if one of them is not there.
            ValueError: see the class.

        Example:

        ```python
        >>> model = EmulatedFineTuningForCausalLM.from_members("large", tuned="small-tuned", reference="small")
        ```
        """
        small = [tuned] if isinstance(tuned, str | os.PathLike) else list(tuned)
        names = [os.fspath(name) for name in (base, *small, *([] if reference is None else [reference]))]
        # A name that occurs twice is one object: its weights need no second place in memory.
        loaded = {name: load_member(name, **options) for name in dict.fromkeys(names)}
        models, entries = zip(*(loaded[name] for name in names), strict=True)
        count = 1 + len(small)
        combined = cls(
            models[0],
            models[1:count],
            None if reference is None else models[-1],
            weights=weights,
            beta=beta,
            upscale_top_p=upscale_top_p,
        )
        own = None if reference is None else entries[-1]
        combined.config.members = {"base": entries[0], "tuned": list(entries[1:count]), "reference": own}
        return combined

    @property
    def members(self) -> tuple[Member, ...]:
        """The base, the tuned models and the reference, in this order."""
        return self._members

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        tuned_input_ids: Tensor | None = None,
        tuned_attention_mask: Tensor | None = None,
        reference_input_ids: Tensor | None = None,
        reference_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the combined log-probabilities as logits `[batch, kept, vocabulary]`, and the loss of `labels`.

        Ids that not all members know have a log-probability of minus infinity. `past_key_values` is the name of
        `cache` in older versions of transformers; see the class for the prompts of single members.

        Raises:
            ValueError: if the sequence is longer than a member's window.
        """
        cache = cache if cache is not None else past_key_values
        if use_cache and cache is None:
            cache = DynamicCache()
        own = OwnPrompts(
            {"tuned": tuned_input_ids, "reference": reference_input_ids},
            {"tuned": tuned_attention_mask, "reference": reference_attention_mask},
        )
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "logits_to_keep": logits_to_keep}
        log_probs = self.member_log_probs(input_ids, cache=cache, own_prompts=own, **inputs)
        logits = self.combine(log_probs)
        loss = None
        if labels is not None:
            kwargs.pop("return_dict", None)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        states: dict[str, Any] = {CACHE_ARGUMENT: cache}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **states)

    def member_log_probs(
        self, input_ids: Tensor, *, cache: Cache | None = None, own_prompts: OwnPrompts | None = None, **inputs: Any
    ) -> list[Tensor]:
        """Return the log-probabilities `[batch, kept, ids that all know]` of each member, on the base's device.

        Args:
            input_ids (`Tensor`): `[batch, tokens]`.
            cache (`Cache`, *optional*): of all members.
            own_prompts (`OwnPrompts`, *optional*): prompts of single members.
            inputs: `attention_mask`, `position_ids`, `logits_to_keep`.

        Raises:
            ValueError: if drafts may be rejected and a member has a recurrent state, which cannot forget them.
        """
        own_prompts = own_prompts or OwnPrompts()
        own_prompts.refuse_without_cache(cache)
        parts: list[Cache | None] = [None] * len(self._members)
        if cache is not None:
            parts = [*views(cover_all(cache, self._members), self._members)]
        inputs = {"logits_to_keep": 0, **inputs}
        found = []
        for member, part in zip(self._members, parts, strict=True):
            past = 0 if part is None else cached_tokens(part)
            seen = own_prompts.inputs(member.role, input_ids, past, inputs)
            _refuse_beyond_window(member, past + seen["input_ids"].shape[1])
            logits = member.logits({**seen, CACHE_ARGUMENT: part, "use_cache": part is not None})
            found.append(self._normalised(logits))
        if cache is not None:
            refuse_states_that_stay(cache, self._members)
        return found

    def combine(self, log_probs: Sequence[Tensor]) -> Tensor:
        """Return the combination of the members' log-probabilities, padded to the vocabulary of the tuned model."""
        base, *tuned, reference = log_probs
        combined = combine_log_probs(
            base,
            tuned,
            reference,
            weights=self.config.checked_weights(len(tuned)),
            beta=self.config.beta,
            upscale_top_p=self.config.upscale_top_p,
        )
        padding = self.config.get_text_config().vocab_size - self._known
        # Ids that some member lacks keep their place and can never be drawn.
        return nn.functional.pad(combined, (0, padding), value=-torch.inf) if padding else combined

    def _normalised(self, logits: Tensor) -> Tensor:
        # Normalised over the shared ids, since a member may put mass on ids (padding rows) that others lack. In
        # float32 at least: differences of bfloat16 log-probabilities are mostly rounding.
        known = logits[..., : self._known]
        log_probs = known.to(torch.promote_types(known.dtype, torch.float32)).log_softmax(dim=-1)
        return beside(log_probs, self._members[0].plain)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate tokens; see `transformers.GenerationMixin.generate` and the class.

        Raises:
            ValueError: if the prompt fills a member's window, the assistant has another vocabulary, or a member's own
                prompt meets an assistant or a prefill in chunks.
        """
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        if prompt is not None:
            for member in self._members:
                _refuse_beyond_window(member, prompt.shape[-1] + 1)
        if (assistant := kwargs.get("assistant_model")) is not None and kwargs.get("assistant_tokenizer") is None:
            refuse_another_vocabulary(assistant, self.config.get_text_config().vocab_size, self._members)
        OwnPrompts.refuse_with(kwargs)
        return super().generate(inputs, *args, **kwargs)

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        # Before the first step: assisted decoding tells every layer of the cache to remember what it may have to crop.
        done = cast(Any, super())._prepare_cache_for_generation(*args, **kwargs)
        model_kwargs = kwargs["model_kwargs"] if "model_kwargs" in kwargs else args[1]
        if (cache := model_kwargs.get(CACHE_ARGUMENT)) is not None:
            cover_all(cache, self._members)
        return done

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        # Where transformers would call `generate` of the assistant for each draft, a bare loop is enough.
        model, config = kwargs.get("assistant_model"), kwargs["generation_config"]
        if model is not None and kwargs.get("assistant_tokenizer") is None and config.assistant_early_exit is None:
            assistant = Member("assistant", model)
            if Draft.serves(assistant):
                mask = kwargs["model_kwargs"].get("attention_mask")
                return Draft(assistant, config, kwargs["logits_processor"], mask)
        return cast(Any, super())._get_candidate_generator(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embeddings of the large base."""
        return self._members[0].plain.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """Return nothing: the logits come from several models."""
        return None

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save where the members are, the settings and a card; adapters are saved, other weights are not.

        A live model does not know the revision it was loaded from: to keep one, load by `from_members` and
        `"id@revision"`, or give it to the adapter's config.

        Args:
            save_directory (`str` or `PathLike`): a new or empty folder.
            push_to_hub (`bool`): refused here; see `hf_warmscale.push_to_hub`.
            kwargs: ignored; there are no weights to shard.

        Raises:
            ValueError: if a member was built in memory, so that there is nothing to load it from.
        """
        if push_to_hub:
            raise ValueError(f"save_pretrained does not push; {PUSH}.")
        with staged_directory(save_directory) as folder:
            self.write_members(folder)

    def write_members(self, folder: Path) -> None:
        """Do what `save_pretrained` does, in an existing folder."""
        self.config.architectures = [type(self).__name__]
        write_by_member(folder, self._members, self.config, self.generation_config)

    def push_to_hub(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        """Refuse: transformers would put an empty card over this one, and send the paths of local members.

        Raises:
            ValueError: naming what to call.
        """
        raise ValueError(f"A combination is not pushed by its own method; {PUSH}.")

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: EmulatedFineTuningConfig | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load the members that a folder names.

        Args:
            pretrained_model_name_or_path (`str` or `PathLike`): what `save_pretrained` wrote; a folder or a Hub id.
            config (`EmulatedFineTuningConfig`, *optional*): instead of the stored one.
            kwargs: for every member's `AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, ...

        Raises:
            FileNotFoundError: if a member is not where it was.
        """
        found = load_members(pretrained_model_name_or_path, config=config, **kwargs)
        base, *tuned, reference = found.models
        stored = found.config
        assert base is not None
        model = cls(
            base,
            [each for each in tuned if each is not None],
            reference,
            weights=stored.weights,
            beta=stored.beta,
            upscale_top_p=stored.upscale_top_p,
        )
        model.config.members, model.config.name_or_path = stored.members, stored.name_or_path
        model.generation_config = found.generation_config or model.generation_config
        return model


def cached_tokens(cache: Cache) -> int:
    """Return how many tokens a cache has seen; 0 where only recurrent states are kept."""
    if cache.layers and all(cache.is_linear):
        return 0
    return int(cache.get_seq_length())


def _members(base: Model, tuned: Sequence[Model], reference: Model | None) -> list[Member]:
    if not tuned:
        raise ValueError("tuned is an empty list; pass at least one tuned model.")
    roles = ["tuned"] if len(tuned) == 1 else [f"tuned[{index}]" for index in range(len(tuned))]
    small = [Member(role, model) for role, model in zip(roles, tuned, strict=True)]
    if reference is None and not isinstance(tuned[0], PeftModel):
        raise ValueError(
            "There is no reference; pass the small base that was tuned, or a tuned model with its adapter on it."
        )
    # With its adapter on, the tuned model as its own reference would give t - s = 0 everywhere; so would the model it
    # was made of, into which peft has put the adapter's layers.
    adapted = tuned[0] if isinstance(tuned[0], PeftModel) else None
    off = adapted is not None and (reference is None or reference in (adapted, adapted.get_base_model()))
    for role, model in {"base": base, "reference": None if off else reference}.items():
        if any(isinstance(each, PeftModel) and each.get_base_model() is model for each in tuned):
            raise ValueError(
                f"The {role} model holds the adapter of a tuned model, since peft adds it in place; load the {role} "
                "model once more."
            )
    return [Member("base", base), *small, Member("reference", tuned[0] if off else reference, adapter=not off)]  # type: ignore[arg-type]


def _token_ids_of(tuned: PreTrainedModel, base: PreTrainedModel) -> GenerationConfig:
    """Return a neutral generation config with the special tokens of the tuned model: it knows where an answer ends."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: copy.copy(getattr(tuned.generation_config, name, None)) for name in names}
    return GenerationConfig(
        **{
            name: getattr(base.generation_config, name, None) if value is None else value
            for name, value in ids.items()
        }
    )


def _refuse_beyond_window(member: Member, length: int) -> None:
    if member.window is not None and length > member.window:
        raise ValueError(
            f"The sequence has {length} tokens and the {member.role} model takes {member.window}; shorten the prompt, "
            "or generate fewer tokens."
        )


AutoConfig.register(EmulatedFineTuningConfig.model_type, EmulatedFineTuningConfig)
AutoModelForCausalLM.register(EmulatedFineTuningConfig, EmulatedFineTuningForCausalLM)
