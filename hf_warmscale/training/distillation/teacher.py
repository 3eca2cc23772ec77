"""A live teacher: what it predicts, which ids it shares with the student, and which weights it has."""

import json
import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Protocol, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import find_tokenizer, refuse_non_finite, require_one_language, shared_ids
from hf_warmscale.checkpoints.tensors import TensorSpec, combine_digests, tensor_digest
from hf_warmscale.checkpoints.tokenizers import num_ids
from hf_warmscale.compat.peft import without_adapter
from hf_warmscale.evaluation import evaluation_mode
from hf_warmscale.training.data.collators import refuse_contamination
from hf_warmscale.training.data.separation import separation_of
from hf_warmscale.training.distillation.predictions import Logits, Predictions
from hf_warmscale.training.launch import cast_partitions, is_partitioned, partitioned_engine, whole_tensors

logger = logging.getLogger(__name__)

INPUTS = ("input_ids", "attention_mask", "position_ids")
"""What a teacher gets of a batch."""


class Teacher(Protocol):
    """What a student is drawn towards."""

    def predict(self, inputs: Mapping[str, Tensor], keys: Tensor | None = None) -> Predictions:
        """Return predictions for the rows of a batch.

        Args:
            inputs (`Mapping[str, Tensor]`): `INPUTS`, as far as the batch has them, `[rows, tokens]`.
            keys (`Tensor`, *optional*): key and length of each row, `[rows, 2]`, for a cache.
        """

    def fingerprint(self) -> str:
        """Return a hash of the weights behind the predictions."""


class LiveTeacher:
    """A causal language model, or several that act as one, run beside the student.

    Args:
        model (`nn.Module`): of transformers or peft. It is put into evaluation mode, on the device of the student
            unless it is spread over devices already.
        num_ids (`int`): the ids that it shares with the student.

    Raises:
        ValueError: if a weight is NaN or infinite.
    """

    def __init__(self, model: nn.Module, num_ids: int, device: torch.device) -> None:
        settle_dtype(model)
        for name, tensor in whole_tensors(model) if is_partitioned(model) else model.named_parameters():
            try:
                refuse_non_finite(name, tensor)
            except ValueError as error:
                raise ValueError(f"The teacher cannot be used: {error}") from error
        self.model, self.num_ids = _placed(model.eval(), device), num_ids
        self._engine: nn.Module = self.model
        self._is_checked = False

    def prepare(self) -> None:
        """Let DeepSpeed gather the weights of a teacher that ZeRO-3 partitioned as it was loaded."""
        if self._engine is self.model and is_partitioned(self.model):
            self._engine = partitioned_engine(self.model)

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Tensor], keys: Tensor | None = None) -> Predictions:
        """See `Teacher.predict`.

        Raises:
            ValueError: on the first batch, if documents of a row would see one another, or a logit is not finite.
        """
        if not self._is_checked:
            for model in causal_models(self.model).values():
                refuse_contamination(inputs, lambda model=model: separation_of(model))  # type: ignore[misc]
        logits: Tensor = self._engine(**inputs, use_cache=False).logits
        if not self._is_checked:
            self._refuse_non_finite(logits, inputs.get("attention_mask"))
            self._is_checked = True
        return Logits(logits.flatten(0, 1), self.num_ids)

    def fingerprint(self) -> str:
        """See `Teacher.fingerprint`."""
        return weights_hash(self.model)

    def _refuse_non_finite(self, logits: Tensor, mask: Tensor | None) -> None:
        finite = logits[..., : self.num_ids].isfinite().all(dim=-1)
        if mask is not None and mask.shape == finite.shape:
            finite |= ~mask.bool()
        if not bool(finite.all()):
            raise ValueError(
                f"The teacher gives logits that are not finite, in {logits.dtype}; load it in a wider dtype, or use a "
                "checkpoint from before it diverged."
            )


class AdapterOff:
    """The student without its adapters: what it was before them.

    Args:
        model (`PeftModel`): the student.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Tensor], keys: Tensor | None = None) -> Predictions:
        """See `Teacher.predict`."""
        with evaluation_mode(self.model), without_adapter(self.model):
            logits: Tensor = self.model(**inputs, use_cache=False).logits
        return Logits(logits.flatten(0, 1), logits.shape[-1])

    def fingerprint(self) -> str:
        """Return a name: the weights are those of the student's base, which no training changes."""
        return "adapter off"


def weights_hash(model: nn.Module) -> str:
    """Return a hash of the weights of a model and of the numbers in its config, whatever its device and engine.

    Where a config says how models are combined, the numbers tell two combinations of the same weights apart.
    """
    tensors = whole_tensors(model)
    digests = ((name, TensorSpec.of(tensor), tensor_digest(tensor.detach().cpu())) for name, tensor in tensors)
    config = getattr(model, "config", None)
    numbers = {} if config is None else _numbers(config.to_diff_dict())
    return sha256(f"{combine_digests(digests)} {json.dumps(numbers, sort_keys=True)}".encode()).hexdigest()


def causal_models(model: nn.Module) -> dict[str, PreTrainedModel]:
    """Return the causal language models that a teacher consists of, by what messages call them."""
    found: dict[str, PreTrainedModel] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and module.can_generate() and id(module) not in seen:
            part = path.removesuffix("base_model.model").strip(".")
            found[f"the teacher's {part}" if part else "the teacher"] = module
            seen.add(id(module))
    return found


def shared_with_student(
    student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, models: Mapping[str, PreTrainedModel]
) -> int:
    """Return how many ids a student shares with its teacher; rows of the vocabulary beyond the tokenizer are ignored.

    Args:
        student (`PreTrainedModel`): the student.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the student.
        models (`Mapping[str, PreTrainedModel]`): see `causal_models`.

    Raises:
        ValueError: naming the first token on which the tokenizers disagree, or numbers of rows that differ without a
            tokenizer that could tell why.
    """
    rows = {name: num_rows(model) for name, model in {"the student": student, **models}.items()}
    tokenizers = {name: find_tokenizer(model.config.name_or_path) for name, model in models.items()}
    tokenizers = {"the student": tokenizer, **tokenizers}
    known = [num_ids(each) for each in tokenizers.values() if each is not None]
    # The members of a combination were compared when it was made.
    for name in ("the student", next(iter(models))):
        needed = min(known, default=rows["the student"])
        if tokenizers[name] is None and (rows[name] < needed or (not known and rows[name] != needed)):
            raise ValueError(
                f"The student has {rows['the student']} tokens and the teacher {rows[next(iter(models))]}, and no "
                "tokenizer tells which of them are one; use models that share a vocabulary."
            )
    if known:
        # The combination of several models has no tokenizer of its own.
        for remark in require_one_language(
            {name: each for name, each in tokenizers.items() if each or len(rows) == 2}
        ):
            logger.warning(remark)
    return shared_ids(rows, tokenizers)


def num_rows(model: PreTrainedModel) -> int:
    """Return the rows of the vocabulary, padding included."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def known_ids(models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Return how many ids a teacher predicts; rows of its vocabulary beyond the tokenizer are left out.

    Args:
        models (`Mapping[str, PreTrainedModel]`): see `causal_models`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): by default those of the models' folders.
    """
    names = {name: tokenizer or find_tokenizer(model.config.name_or_path) for name, model in models.items()}
    return shared_ids({name: num_rows(model) for name, model in models.items()}, names)


def _numbers(content: Any) -> Any:
    """Return what is a number in nested plain values, without the names and notes around them."""
    if isinstance(content, Mapping):
        found = {str(key): _numbers(value) for key, value in content.items()}
        return {key: value for key, value in found.items() if value not in (None, [], {})}
    if isinstance(content, list | tuple):
        return [number for each in content if (number := _numbers(each)) is not None]
    return content if isinstance(content, int | float) and not isinstance(content, bool) else None


def settle_dtype(model: nn.Module) -> None:
    """Give a teacher that ZeRO-3 partitioned the dtype that it was asked for; another one is left alone."""
    dtypes = [each.config.dtype for each in causal_models(model).values()]
    asked = {dtype for dtype in dtypes if isinstance(dtype, torch.dtype)}  # a combination has none
    # An engine runs weights of one dtype; those of adapters are partitioned only by the engine.
    if len(asked) != 1 or not all(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return
    dtype, held = asked.pop(), next(model.parameters()).dtype
    if torch.promote_types(dtype, held) == held:
        cast_partitions(model, dtype)
    else:
        logger.warning(
            "The teacher was to be loaded in %s, but ZeRO-3 has rounded it to %s, the precision of its config; load "
            "it before the training arguments are made to keep it whole.",
            dtype,
            held,
        )


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    fixed = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
    return model if fixed or is_partitioned(model) else cast(Any, model).to(device)
