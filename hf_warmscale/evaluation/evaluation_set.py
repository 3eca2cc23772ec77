"""Documents tokenised, cut into windows and batched once, to score many models on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.evaluation.cross_entropy import token_nll
from hf_warmscale.evaluation.scores import DocumentNLL, combined_digest
from hf_warmscale.evaluation.windows import Batch, Window, batch_by_length, cut, share

DEFAULT_MAX_LENGTH = 1024
DEFAULT_BATCH_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """A prepared set of held-out documents: tokenised and batched once, then scored with any number of models.

    Every token of a document is predicted exactly once. The first is predicted from the tokenizer's beginning-of-text
    token (end-of-text if there is none). A document longer than `max_length` tokens is cut into windows of
    `max_length` predictions, one after another; a window begins with the last token of the window before it and sees
    nothing earlier, as in packed training.

    Build it with [`EvaluationSet.from_documents`].

    Args:
        sequences (`tuple[Tensor, ...]`): token ids of each document behind its start token, `[1 + tokens]` each.
        bytes (`tuple[int, ...]`): length of each document in UTF-8.
        digests (`tuple[str, ...]`): sha256 of each document.
        max_length (`int`): predictions in a window, at most.
        batch_tokens (`int`): positions in a batch, padding included, at most.

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
            ValueError: if there is no document, if one is empty, not a text or not Unicode, if the tokenizer has
                neither a beginning-of-text nor an end-of-text token, or if a length is not positive.
        """
        _check_documents(documents)
        for name, value in {"max_length": max_length, "batch_tokens": batch_tokens}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        start = _start_token(tokenizer)
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
        """Return the set of the documents at `indices`, in that order."""
        return replace(
            self,
            sequences=tuple(self.sequences[index] for index in indices),
            bytes=tuple(self.bytes[index] for index in indices),
            digests=tuple(self.digests[index] for index in indices),
        )

    def subset(self, size: int, *, seed: int = 0) -> Self:
        """Return the first `size` documents of a seeded shuffle: a smaller subset is part of every larger one."""
        return self.take(np.random.default_rng(seed).permutation(len(self))[:size].tolist())

    def nll(self, model: nn.Module, *, distributed: bool = False) -> DocumentNLL:
        """Score every document with `model`.

        The model is put into evaluation mode and back; its dtype, its device and an autocast context around the call
        are respected. The result does not depend on the batching beyond float rounding.

        Args:
            model (`nn.Module`): a causal LM of transformers, wrapped for distributed training or not.
            distributed (`bool`): share the batches among the processes of the default process group, which must all
                call this with the same model and set; each gets the whole result.

        Raises:
            ValueError: if the model gives NaN or infinity, or cannot take a token or the length of a window.
        """
        self._check_fits(model)
        device = next(model.parameters()).device
        total = torch.zeros(len(self), dtype=torch.float64, device=device)
        with _evaluation_mode(model), torch.no_grad():
            for batch in self._batches_of_this_process() if distributed else self._batches:
                self._add_batch(model, batch, total)
        if distributed:
            torch.distributed.all_reduce(total)
        return self._result(total)

    @cached_property
    def _batches(self) -> list[Batch]:
        return batch_by_length(cut((len(ids) - 1 for ids in self.sequences), self.max_length), self.batch_tokens)

    def _batches_of_this_process(self) -> list[Batch]:
        # Every process makes the same number of forward passes: sharded parameters are gathered by all at once.
        return share(self._batches, torch.distributed.get_rank(), torch.distributed.get_world_size())

    def _add_batch(self, model: nn.Module, batch: Batch, total: Tensor) -> None:
        windows = batch or (Window(0, 0, 1),)
        lengths = torch.tensor([window.length for window in windows])
        inputs = torch.zeros(len(windows), int(lengths.max()), dtype=torch.long)
        targets = torch.zeros_like(inputs)
        for row, window in enumerate(windows):
            ids = self.sequences[window.document][window.start : window.start + window.length + 1]
            inputs[row, : window.length] = ids[:-1]
            targets[row, : window.length] = ids[1:]
        # Padding stands on the right, where a causal model's earlier positions cannot see it: no mask is needed.
        logits = model(input_ids=inputs.to(total.device), use_cache=False).logits
        nll = token_nll(logits, targets.to(logits.device))
        scored = torch.arange(inputs.shape[1]) < lengths[:, None]
        sums = nll.masked_fill(~scored.to(nll.device), 0.0).sum(dim=1)
        if batch:
            documents = torch.tensor([window.document for window in batch], device=total.device)
            total.index_add_(0, documents, sums.to(total.device))

    def _result(self, total: Tensor) -> DocumentNLL:
        finite = torch.isfinite(total)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise ValueError(
                f"The model gives an NLL of {total[first].item()} for document {first}; check its weights."
            )
        return DocumentNLL(
            nll=total.cpu().numpy(),
            tokens=np.array([len(sequence) - 1 for sequence in self.sequences]),
            bytes=np.array(self.bytes),
            digests=self.digests,
        )

    def _check_fits(self, model: nn.Module) -> None:
        vocab_size = _text_config(model).vocab_size
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
    """Return the negative log-likelihood of each document under `model`, with the numbers that follow from it.

    See [`EvaluationSet`] for how documents are read and long ones cut; to score several models, prepare one set.

    Args:
        model (`nn.Module`): a causal LM of transformers.
        documents (`Sequence[str]`): held-out texts.
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        max_length (`int`, *optional*): predictions in a window; by default 1024, or as many as the model takes.
        batch_tokens (`int`): positions in a batch, padding included, at most.

    Raises:
        ValueError: if there is no document, if one is empty, if the tokenizer has no token to start with or does not
            fit the model, or if the model gives NaN.

    Example:

    ```python
    >>> scores = document_nll(model, ["Scale up.", "Keep warm."], tokenizer)
    >>> scores.nll, scores.perplexity, scores.bits_per_byte
    ```
    """
    max_length = default_max_length(model) if max_length is None else max_length
    prepared = EvaluationSet.from_documents(documents, tokenizer, max_length=max_length, batch_tokens=batch_tokens)
    return prepared.nll(model)


def default_max_length(model: nn.Module) -> int:
    """Return 1024, or as many positions as the model takes if these are fewer."""
    return min(DEFAULT_MAX_LENGTH, _max_positions(model) or DEFAULT_MAX_LENGTH)


def _text_config(model: nn.Module) -> PreTrainedConfig:
    """Found inside whatever wraps the model: adapters, DDP, a DeepSpeed engine."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel)).config.get_text_config()


def _max_positions(model: nn.Module) -> int | None:
    """The model's limit, if it has one: configs without positions (Bloom, Mamba) lack the field."""
    return getattr(_text_config(model), "max_position_embeddings", None)


def _check_documents(documents: Sequence[str]) -> None:
    if isinstance(documents, str) or not len(documents):
        raise ValueError(f"documents is {documents!r}; pass a list of at least one text.")
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise ValueError(f"Document {index} is a {type(document).__name__}; pass texts.")
        if not document.strip():
            raise ValueError(f"Document {index} is empty; leave it out.")
        try:
            document.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, UTF-8 and tokenizers cannot
            raise ValueError(
                f"Document {index} holds half a character at position {error.start}; repair it or leave it out."
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
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Module by module, since a frozen part may be in evaluation mode already."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
