"""The loss that a student calls as its own: cross-entropy and what its teachers say, in one pass over the logits."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hf_warmscale.evaluation import IGNORE_INDEX
from hf_warmscale.training.distillation.mixed_loss import Pull, mixed_loss
from hf_warmscale.training.token_loss import TokenLoss, mean_over_step, next_tokens


class DistillationLoss(TokenLoss):
    """A `TokenLoss` that mixes in divergences from teachers.

    Router losses and the like stay: the model adds them to whatever this returns.

    Args:
        model (`nn.Module`): the student, in whatever wraps it.
        nll_weight (`float`): of the cross-entropy.
    """

    def __init__(self, model: nn.Module, nll_weight: float) -> None:
        super().__init__(model)
        self.nll_weight = nll_weight
        self.pulls: Sequence[Pull] = ()
        self.divergence: Tensor | None = None

    def expect(self, pulls: Sequence[Pull]) -> None:
        """Set the pulls on the student in the next micro-batch."""
        self.pulls, self.divergence = pulls, None

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORE_INDEX,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the mixed loss; see `TokenLoss` for the arguments."""
        if self.divergence is not None:  # of several heads, the first predicts the next token
            plain = super().__call__(logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels)
            return self.nll_weight * plain
        targets = next_tokens(labels, shift_labels, ignore_index)
        return self.mixed(logits, targets, self.nll_weight, num_items_in_batch, ignore_index)

    def mixed(
        self,
        logits: Tensor,
        targets: Tensor,
        nll_weight: float,
        num_items_in_batch: Tensor | int | None,
        ignore_index: int = IGNORE_INDEX,
    ) -> Tensor:
        """Return the loss under another weight of the cross-entropy, and note the losses of each token."""
        targets = targets.to(logits.device)
        found = mixed_loss(logits, targets, self.pulls, nll_weight=nll_weight, ignore_index=ignore_index)
        self.divergence = found.divergence
        if self.nll is None:
            self.nll = found.nll
        # The predictions are large, and nothing needs them any more.
        self.pulls = ()
        return mean_over_step(found.total, targets != ignore_index, num_items_in_batch)
