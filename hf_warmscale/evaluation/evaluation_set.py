"""Documents that are tokenised, cut into windows and batched once, and on which many models are scored."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import find_tokenizer, load_config, require_one_language
from hf_warmscale.evaluation.cross_entropy import IGNORE_INDEX, token_nll
from hf_warmscale.evaluation.scores import DocumentNLL, FloatArray, NonFiniteLossError, combined_digest
from hf_warmscale.evaluation.windows import Batch, Window, batch_by_length, cut_windows, share

DEFAULT_MAX_LENGTH = 1024
DEFAULT_BATCH_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """A prepared set of held-out documents: tokenised and batched once, then scored with any number of models.

    Every token of a document is predicted exactly once. The first is predicted from the tokenizer's beginning-of-text
    token (end-of-text if there is none). A document longer than `max_length` tokens is cut into windows of
    `max_length` predictions, one after another; a window begins with the last token of the previous window and sees
    nothing earlier, as in packed training.

    Build it with [`EvaluationSet.from_documents`].

    Args:
        sequences (`tuple[Tensor, ...]`): the start token and then the token ids of each document, `[1 + tokens]`.
        bytes (`tuple[int, ...]`): the length of each document in UTF-8.
        digests (`tuple[str, ...]`): the SHA-256 of each document.
        max_length (`int`): the most predictions in a window.
        batch_tokens (`int`): the most positions in a batch, padding included.

    Example:

    ```python
    >>> held_out = EvaluationSet.from_documents(documents, tokenizer)
    >>> held_out.nll(model).bits_per_byte
    ```
    """

    sequences: tuple[Tensor, ...]
    bytes: tuple[int, ...]
    digests: tuple[str, ...]
    max_length: int = DEFAULT_MAX_LENGTH
    batch_tokens: int = DEFAULT_BATCH_TOKENS

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = DEFAULT_MAX_LENGTH,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> Self:
        """Tokenise documents (without special tokens) and prepare them for scoring.

        Raises:
            ValueError: if there is no document, if one is empty, not a string or not valid Unicode, if the tokenizer
                has neither a beginning-of-text nor an end-of-text token, or if a length is not positive.
        """
        _check_documents(documents)
        for name, value in {"max_length": max_length, "batch_tokens": batch_tokens}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        start = _start_token(tokenizer)
        # Without special tokens: many tokenizers add a start or an end token, which would be scored as a part of the
        # document.
        tokenised = tokenizer(list(documents), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        for index, ids in enumerate(tokenised):
            if not ids:
                raise ValueError(f"Document {index} has no tokens ({documents[index][:40]!r}); leave it out.")
        encoded = [document.encode("utf-8") for document in documents]
        return cls(
            sequences=tuple(torch.tensor([start, *ids]) for ids in tokenised),
            bytes=tuple(len(text) for text in encoded),
            digests=tuple(sha256(text).hexdigest() for text in encoded),
            max_length=max_length,
            batch_tokens=batch_tokens,
        )

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def sha256(self) -> str:
        """The hash of the documents and of their order."""
        return combined_digest(self.digests)

    @property
    def num_tokens(self) -> int:
        """The number of tokens that are scored."""
        return sum(len(sequence) - 1 for sequence in self.sequences)

    def take(self, indices: Sequence[int]) -> Self:
        """Return the documents at `indices`, in that order, as a set of their own."""
        return replace(
            self,
            sequences=tuple(self.sequences[index] for index in indices),
            bytes=tuple(self.bytes[index] for index in indices),
            digests=tuple(self.digests[index] for index in indices),
        )

    def subset(self, size: int, *, seed: int = 0) -> Self:
        """Return the first `size` documents of a seeded shuffle: a small subset is contained in every larger one."""
        return self.take(np.random.default_rng(seed).permutation(len(self))[:size].tolist())

    def nll(self, model: nn.Module, *, distributed: bool = False) -> DocumentNLL:
        """Score every document with `model`.

        The model is put into evaluation mode and back; its dtype, its device and an autocast context around the call
        are respected. The result does not depend on the batching, beyond float rounding. Token losses are float32 on
        the device of the model and are summed in float64 on the CPU.

        Args:
            model (`nn.Module`): a causal LM of transformers, wrapped for distributed training or not.
            distributed (`bool`): share the batches among the processes of the default process group, which must all
                call this with the same model and set; each gets the whole result.

        Raises:
            NonFiniteLossError: if the model gives NaN or infinity.
            ValueError: if the vocabulary of the model lacks a token, or a window is longer than its positions.
        """
        self._check_fits(model)
        device = next(model.parameters()).device
        total = torch.zeros(len(self), dtype=torch.float64)
        with evaluation_mode(model), torch.no_grad():
            for batch in self._batches_of_this_process() if distributed else self._batches:
                self._add_batch(model, batch, total, device)
        return self._result(_sum_over_processes(total, device) if distributed else total)

    @cached_property
    def _batches(self) -> list[Batch]:
        return batch_by_length(
            cut_windows((len(ids) - 1 for ids in self.sequences), self.max_length), self.batch_tokens
        )

    def _batches_of_this_process(self) -> list[Batch]:
        # Every process makes the same number of forward passes: all of them gather sharded parameters together.
        return share(self._batches, torch.distributed.get_rank(), torch.distributed.get_world_size())

    def _add_batch(self, model: nn.Module, batch: Batch, total: Tensor, device: torch.device) -> None:
        windows = batch or (Window(0, 0, 1),)  # a spare forward pass, which no document counts
        inputs = torch.zeros(len(windows), max(window.length for window in windows), dtype=torch.long)
        targets = torch.full_like(inputs, IGNORE_INDEX)
        for row, window in enumerate(windows):
            # One token more than predictions: the first is input only, the last is target only.
            ids = self.sequences[window.document][window.start : window.start + window.length + 1]
            inputs[row, : window.length] = ids[:-1]
            targets[row, : window.length] = ids[1:]
        # Padding is on the right, where a causal model's earlier positions cannot see it: no mask is needed.
        logits = model(input_ids=inputs.to(device), use_cache=False).logits
        # `[rows, tokens]` nats, summed in float64 on the CPU: not every accelerator has float64, and a float32 sum of
        # a long document loses digits that a paired difference needs.
        sums = token_nll(logits, targets.to(logits.device)).cpu().double().sum(dim=1)
        if batch:
            # The windows of one document may be in several batches, and several of them in this one.
            total.index_add_(0, torch.tensor([window.document for window in batch]), sums)

    def _result(self, total: Tensor) -> DocumentNLL:
        finite = torch.isfinite(total)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise NonFiniteLossError(
                f"The model gives an NLL of {total[first].item()} for document {first}; check its weights."
            )
        return self.scores(total.numpy())

    def scores(self, nll: FloatArray) -> DocumentNLL:
        """Return losses of the documents that were computed earlier and stored, `[documents]` in nats, as scores."""
        return DocumentNLL(
            nll=nll,
            tokens=np.array([len(sequence) - 1 for sequence in self.sequences]),
            bytes=np.array(self.bytes),
            digests=self.digests,
        )

    def _check_fits(self, model: nn.Module) -> None:
        vocab_size = _text_config(model).vocab_size
        # Refused here: on an accelerator an id out of range is an asynchronous assertion that names neither token nor
        # tokenizer.
        largest = max(int(ids.max()) for ids in self.sequences)
        if largest >= vocab_size:
            raise ValueError(
                f"The tokenizer gives id {largest}, but the model's vocabulary has {vocab_size} entries; "
                "use the tokenizer the model was trained with."
            )
        limit = _max_positions(model)
        if limit is not None and self._batches[0][0].length > limit:
            raise ValueError(
                f"The model takes at most {limit} positions, but max_length is {self.max_length}; set it to {limit}."
            )


def document_nll(
    model: nn.Module,
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> DocumentNLL:
    """Return the negative log-likelihood of each document under `model`, and the numbers derived from it.

    [`EvaluationSet`] says how documents are tokenised and long ones cut. To score several models, prepare one set.

    Args:
        model (`nn.Module`): a causal LM of transformers.
        documents (`Sequence[str]`): held-out texts, none of them empty.
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        max_length (`int`, *optional*): predictions in a window; by default 1024, or fewer if the model has fewer
            positions.
        batch_tokens (`int`): the most positions in a batch, padding included.

    Raises:
        NonFiniteLossError: if the model gives NaN or infinity.
        ValueError: if there is no document, if one is empty, or if the tokenizer has no token to start with or does
            not fit the model, or disagrees with the one in the folder that the model was loaded from.

    Example:

    ```python
    >>> scores = document_nll(model, ["Scale up.", "Keep warm."], tokenizer)
    >>> scores.nll, scores.perplexity, scores.bits_per_byte
    ```
    """
    _check_language(model, tokenizer)
    max_length = default_max_length(model) if max_length is None else max_length
    prepared = EvaluationSet.from_documents(documents, tokenizer, max_length=max_length, batch_tokens=batch_tokens)
    return prepared.nll(model)


def _check_language(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the tokenizer with that of the folder from which the model was loaded, if there is such a folder.

    Embedding tables are padded, so the tokenizer of another model may fit, and the numbers would be wrong.
    """
    config = _text_config(model)
    folder = Path(getattr(config, "_name_or_path", None) or os.devnull)
    if not folder.is_dir() or folder.resolve() == Path(tokenizer.name_or_path or os.devnull).resolve():
        return
    with suppress(OSError, ValueError):  # a folder that has changed since then says nothing
        if load_config(folder).get_text_config().vocab_size != config.vocab_size:
            return  # neither does one whose vocabulary was replaced in the live model
    own = find_tokenizer(folder)
    for remark in require_one_language({"The given tokenizer": tokenizer, f"that of {folder}": own}) if own else ():
        warnings.warn(remark, stacklevel=3)


def default_max_length(model: nn.Module) -> int:
    """Return 1024, or as many positions as the model takes if these are fewer.

    Args:
        model (`nn.Module`): a causal LM, whatever wraps it.

    Example:

    ```python
    >>> default_max_length(model)  # of a model with 128 positions
    128
    ```
    """
    return min(DEFAULT_MAX_LENGTH, _max_positions(model) or DEFAULT_MAX_LENGTH)


def _sum_over_processes(total: Tensor, device: torch.device) -> Tensor:
    """Sum float64 numbers over all processes, in the order of their ranks: every process gets the same bits.

    Backends such as NCCL send tensors of the device only, which may lack float64: the bits travel as integers.
    """
    bits = total.view(torch.int64).to(device)
    gathered = [torch.empty_like(bits) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, bits)
    # Not an all-reduce: its order of summation depends on the backend and the number of processes.
    return torch.stack([each.cpu().view(torch.float64) for each in gathered]).sum(dim=0)


def _text_config(model: nn.Module) -> PreTrainedConfig:
    """Find the config inside whatever wraps the model: adapters, DDP, a DeepSpeed engine."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel)).config.get_text_config()


def _max_positions(model: nn.Module) -> int | None:
    """Return the limit of the model; configs of models without positions (Bloom, Mamba) lack the field."""
    return getattr(_text_config(model), "max_position_embeddings", None)


def _check_documents(documents: Sequence[str]) -> None:
    if isinstance(documents, str) or not len(documents):
        raise ValueError(f"documents is {documents!r}; pass a list with at least one text.")
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise ValueError(f"Document {index} is a {type(document).__name__}; pass strings.")
        if not document.strip():
            raise ValueError(f"Document {index} is empty; leave it out.")
        try:
            document.encode()
        except UnicodeEncodeError as error:  # JSON can hold one, UTF-8 and tokenizers cannot
            raise ValueError(
                f"Document {index} has half a surrogate pair at position {error.start}; repair it or leave it out."
            ) from error


def _start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    raise ValueError(
        f"The tokenizer {tokenizer.name_or_path!r} has neither a bos_token nor an eos_token, so nothing predicts the "
        "first token of a document; set one."
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block; each module then has its own mode again.

    `model.train()` afterwards would also switch on a frozen part that was in evaluation mode before.

    Example:

    ```python
    >>> with evaluation_mode(model):
    ...     model.training
    False
    ```
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
