"""The likelihood of a set of documents under a model, and the numbers derived from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class NonFiniteLossError(ValueError):
    """A model, or a loss function, gave NaN or infinity: the model diverged, the data are not at fault.

    Example:

    ```python
    >>> try:
    ...     raise NonFiniteLossError("The model gave a loss of nan.")
    ... except ValueError as error:
    ...     print(error)
    The model gave a loss of nan.
    ```
    """


@dataclass(frozen=True, eq=False)
class DocumentNLL:
    """Negative log-likelihood of each document, in the order in which the documents were given.

    Args:
        nll (`FloatArray`): `[documents]`, nats, summed over the tokens of a document.
        tokens (`IntArray`): `[documents]`, the number of tokens scored: every token of the document.
        bytes (`IntArray`): `[documents]`, the length in UTF-8.
        digests (`tuple[str, ...]`): the SHA-256 of each document.

    Example:

    ```python
    >>> import numpy as np
    >>> scores = DocumentNLL(np.array([6.0, 2.0]), np.array([3, 1]), np.array([12, 4]), ("00ff", "11ee"))
    >>> scores.mean, round(scores.bits_per_byte, 3)
    (2.0, 0.721)
    ```
    """

    nll: FloatArray
    tokens: IntArray
    bytes: IntArray
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def mean(self) -> float:
        """Nats per token, each token with the same weight."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte: comparable between tokenizers."""
        return float(self.nll.sum() / self.bytes.sum() / math.log(2))

    @property
    def perplexity(self) -> float:
        """The exponential of `mean`; infinite above some 709 nats, where it overflows."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    @property
    def sha256(self) -> str:
        """The hash of the documents and of their order."""
        return combined_digest(self.digests)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the scores of several sets of documents as those of one set."""
        return cls(
            nll=np.concatenate([part.nll for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            bytes=np.concatenate([part.bytes for part in parts]),
            digests=tuple(digest for part in parts for digest in part.digests),
        )

    def first(self, count: int) -> Self:
        """Return the scores of the first `count` documents."""
        return type(self)(self.nll[:count], self.tokens[:count], self.bytes[:count], self.digests[:count])

    def summary(self) -> dict[str, float | int | str | None]:
        """Return the derived numbers, ready for JSON: a perplexity that overflows is `None` there."""
        return {
            "nll": self.mean,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "documents": len(self),
            "tokens": int(self.tokens.sum()),
            "bytes": int(self.bytes.sum()),
            "documents_sha256": self.sha256,
        }


def combined_digest(digests: Sequence[str]) -> str:
    """Return the SHA-256 of a sequence of SHA-256 digests."""
    return sha256("".join(digests).encode("ascii")).hexdigest()
