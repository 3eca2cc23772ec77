"""The loss of a step, computed once: the scalar for the trainer, and the same loss token by token for the meter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_warmscale.compat.transformers import models_with_causal_lm_loss, replaced_loss
from hf_warmscale.evaluation import IGNORE_INDEX, token_nll


class TokenLoss:
    """A causal language model's loss that remembers the loss of each token.

    While it is installed, a model that calls `self.loss_function` computes its cross-entropy here. The gradients are
    those of transformers' own loss bit for bit, the scalar is summed in another order. Whatever a model adds to its
    loss (router losses) it adds to this one too.

    Args:
        model (`nn.Module`): the model, in whatever wraps it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.owners = models_with_causal_lm_loss(model)
        self.nll: Tensor | None = None
        self._is_installed = False

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
        """Return the mean loss, or the sum divided by `num_items_in_batch`; arguments as in transformers."""
        # A model spread over devices may return its logits on another one than its labels.
        targets = next_tokens(labels, shift_labels, ignore_index).to(logits.device)
        nll = nn.functional.cross_entropy(
            logits.float().reshape(-1, vocab_size), targets.reshape(-1), ignore_index=ignore_index, reduction="none"
        )
        if self.nll is None:  # the first of several heads predicts the next token
            self.nll = nll.detach().reshape(targets.shape)
        return mean_over_step(nll.sum(), targets != ignore_index, num_items_in_batch)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the model call this loss inside the block; `nll` is `None` until it does, and stays after the block.

        Inside such a block, another one changes nothing.
        """
        if self._is_installed:
            yield
            return
        self.nll, self._is_installed = None, True
        try:
            with replaced_loss(self.owners, self):
                yield
        finally:
            self._is_installed = False


def next_tokens(labels: Tensor | None, shift_labels: Tensor | None, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return the target of each position, `[rows, tokens]`: column i predicts label i + 1, the last one nothing."""
    if shift_labels is not None:
        return shift_labels
    assert labels is not None
    return nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)


def mean_over_step(total: Tensor, counts: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Return a sum over the positions of a micro-batch, divided so that the micro-batches of a step add up to a mean.

    Args:
        total (`Tensor`): the sum.
        counts (`Tensor`): which positions have a target.
        num_items_in_batch (`Tensor` or `int`, *optional*): the targets of all micro-batches of the step; without it
            the mean is over this micro-batch.
    """
    if num_items_in_batch is None:
        return total / at_least_one(counts.sum())
    # The count is over all micro-batches of the step, so their losses add up to the mean over the step's tokens. A
    # mean of means would weigh short rows too much.
    return total / torch.as_tensor(num_items_in_batch, device=total.device)


def at_least_one(count: Tensor | int) -> Tensor:
    """Return a number of labels, 1 for 0: a sum over none is 0, not 0/0. The device is not waited for."""
    count = torch.as_tensor(count)
    return torch.where(count == 0, torch.ones_like(count), count)


def any_label(labels: Tensor, *, shifted: bool) -> Tensor:
    """Return whether a loss counts any of the labels, as a scalar on their device.

    Args:
        labels (`Tensor`): `[rows, tokens]`, or one label per row.
        shifted (`bool`): the loss predicts the next label, so that the first label of a row does not count.
    """
    return (labels[..., 1:] if shifted else labels).ne(IGNORE_INDEX).any()


@contextmanager
def captured(model: nn.Module) -> Iterator[list[Mapping[str, Any]]]:
    """Collect the outputs of a model inside the block, for a loss function that does not return them."""
    seen: list[Mapping[str, Any]] = []

    def keep(module: nn.Module, arguments: Any, outputs: Any) -> None:
        if isinstance(outputs, Mapping):
            seen.append(outputs)

    handle = model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def nll_of_outputs(outputs: Mapping[str, Any], labels: Tensor) -> Tensor | None:
    """Return the loss of every next token, `[rows, tokens]`, from what a model returned; `None` if that has no loss.

    The last column and ignored labels are 0. trl's fused head gives `log_probs` instead of logits.

    Args:
        outputs (`Mapping`): of the model.
        labels (`Tensor`): `[rows, tokens]`.
    """
    log_probs, logits = outputs.get("log_probs"), outputs.get("logits")
    if log_probs is not None:
        return -nn.functional.pad(log_probs, (0, labels.shape[1] - log_probs.shape[1]))
    if logits is None:
        return None
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    # Virtual tokens of prompt tuning stand in front; the logits of the text are the last ones.
    return token_nll(logits[:, -labels.shape[1] :], targets)
