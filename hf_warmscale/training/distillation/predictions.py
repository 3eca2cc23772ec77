"""What a teacher predicts for the rows of a batch: all logits, or the likeliest tokens and the mass of the rest."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hf_warmscale.training.distillation.divergence import DENSE, OF_TOP, Direction, forward_kl_of_sample


class Predictions(Protocol):
    """Next-token predictions at positions `[rows, tokens]`, flattened to `[positions]`."""

    @property
    def num_ids(self) -> int:
        """Return how many ids are compared, counted from 0: padding rows of the vocabulary are not."""

    @property
    def num_positions(self) -> int:
        """Return how many positions there are predictions for."""

    def divergence(self, start: int, log_q: Tensor, temperature: float, direction: Direction) -> tuple[Tensor, Tensor]:
        """Return the divergence at the positions from `start` on, and its gradient.

        Args:
            start (`int`): the first position.
            log_q (`Tensor`): log-probabilities `[positions, num_ids]` of the student at this temperature.
            temperature (`float`): of both softmaxes.
            direction (`str`): `"forward"` or `"reverse"`.

        Returns:
            `[positions]` in nats, and `[positions, num_ids]` with respect to logits over temperature.
        """


@dataclass(frozen=True)
class Logits:
    """All logits of a live teacher.

    Args:
        logits (`Tensor`): `[positions, vocabulary]`, in the teacher's dtype.
        num_ids (`int`): see `Predictions`.
    """

    logits: Tensor
    num_ids: int

    @property
    def num_positions(self) -> int:
        """See `Predictions`."""
        return len(self.logits)

    def divergence(self, start: int, log_q: Tensor, temperature: float, direction: Direction) -> tuple[Tensor, Tensor]:
        """See `Predictions.divergence`."""
        logits = self.logits[start : start + len(log_q), : self.num_ids].to(log_q.device, log_q.dtype)
        scaled = logits if temperature == 1 else logits / temperature
        return DENSE[direction](scaled.log_softmax(dim=-1), log_q)


@dataclass(frozen=True)
class TopLogProbs:
    """The likeliest tokens and some drawn from the rest, read from a cache, at the cache's temperature.

    A forward divergence is estimated from all of them, without bias. A reverse one looks at the likeliest alone and
    at the rest as one event, which makes it a lower bound.

    Args:
        ids (`Tensor`): `[positions, k]`, int64: the likeliest, then those drawn.
        log_probs (`Tensor`): `[positions, k]`.
        log_tail (`Tensor`): log-probability of all tokens but the likeliest together, `[positions]`.
        num_ids (`int`): see `Predictions`.
        draws (`int`): how many of the k were drawn.
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor
    num_ids: int
    draws: int = 0

    @property
    def num_positions(self) -> int:
        """See `Predictions`."""
        return len(self.ids)

    def divergence(self, start: int, log_q: Tensor, temperature: float, direction: Direction) -> tuple[Tensor, Tensor]:
        """See `Predictions.divergence`."""
        part = slice(start, start + len(log_q))
        ids = self.ids[part].to(log_q.device)
        log_p, log_tail = (each[part].to(log_q.device, log_q.dtype) for each in (self.log_probs, self.log_tail))
        likeliest = ids.shape[1] - self.draws
        if self.draws and direction == "forward":
            drawn = (log_tail - math.log(self.draws))[:, None].expand(-1, self.draws)
            return forward_kl_of_sample(ids, log_p, torch.cat([log_p[:, :likeliest], drawn], dim=1), log_q)
        return OF_TOP[direction](ids[:, :likeliest], log_p[:, :likeliest], log_tail, log_q)
