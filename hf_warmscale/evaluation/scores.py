"""What a model's likelihood of a set of documents is, and the numbers that follow from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DocumentNLL:
    """Negative log-likelihood of each document, in the order in which the documents were given.

    Args:
        nll (`FloatArray`): `[documents]`, nats, summed over the tokens of a document.
        tokens (`IntArray`): `[documents]`, tokens scored: every token of the document.
        bytes (`IntArray`): `[documents]`, length in UTF-8.
        digests (`tuple[str, ...]`): the sha256 of each document.
    """

    nll: FloatArray
    tokens: IntArray
    bytes: IntArray
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def mean(self) -> float:
        """Nats per token, every token weighing the same."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte: comparable between tokenizers."""
        return float(self.nll.sum() / self.bytes.sum() / math.log(2))

    @property
    def perplexity(self) -> float:
        """The exponential of `mean`."""
        return math.exp(self.mean)

    @property
    def sha256(self) -> str:
        """The hash of the documents and of their order."""
        return combined_digest(self.digests)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the scores of several sets of documents as those of one."""
        return cls(
            nll=np.concatenate([part.nll for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            bytes=np.concatenate([part.bytes for part in parts]),
            digests=tuple(digest for part in parts for digest in part.digests),
        )

    def first(self, count: int) -> Self:
        """Return the scores of the first `count` documents."""
        return type(self)(self.nll[:count], self.tokens[:count], self.bytes[:count], self.digests[:count])

    def summary(self) -> dict[str, float | int | str]:
        """Return the derived numbers, ready for JSON."""
        return {
            "nll": self.mean,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity,
            "documents": len(self),
            "tokens": int(self.tokens.sum()),
            "bytes": int(self.bytes.sum()),
            "documents_sha256": self.sha256,
        }


def combined_digest(digests: Sequence[str]) -> str:
    """Return the sha256 of a sequence of sha256 digests."""
    return sha256("".join(digests).encode("ascii")).hexdigest()
