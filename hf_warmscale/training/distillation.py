"""Heal a shrunk model: train it to match the predictions of the larger model."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_warmscale.evaluation import IGNORE_INDEX
from hf_warmscale.training.token_loss import captured
from hf_warmscale.training.trainer import ContinualTrainer


class HealingTrainer(ContinualTrainer):
    """Distil a model into the smaller one that was cut from it (arXiv:2407.14679: a few steps recover most).

    The training loss is KL(teacher || student) of the next-token distributions, in nats per token, averaged over the
    positions that have a label. Evaluation measures the cross-entropy of the text, as everywhere. To train on the
    text alone, use [`ContinualTrainer`].

    Args:
        arguments: of [`ContinualTrainer`]; `model` is the shrunk one.
        teacher (`PreTrainedModel`): the larger model; it is frozen and put on the student's device.
        settings: of [`ContinualTrainer`].

    Raises:
        ValueError: if the vocabularies differ.

    Example:

    ```python
    >>> small = shrink_from_pretrained(large, num_hidden_layers=24, calibration=texts)
    >>> stage = Stage("heal", "rewarm_cosine", mixture, max_steps=500)
    >>> HealingTrainer(small, arguments, teacher=large, stage=stage).train()
    ```
    """

    def __init__(self, *arguments: Any, teacher: PreTrainedModel, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        sizes = [self.accelerator.unwrap_model(self.model).config.vocab_size, teacher.config.vocab_size]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"The student has {sizes[0]} tokens and the teacher {sizes[1]}; use models that share a vocabulary."
            )
        self.teacher = teacher.requires_grad_(False).eval().to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the divergence from the teacher while training, and the usual loss in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        given = {
            name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask", "position_ids")
        }
        with torch.no_grad():
            expected = self.teacher(**given, use_cache=False).logits
        # Run the student as the trainer does, and catch its logits. Its cross-entropy is dropped, but the loss by
        # source is measured on the way.
        with captured(model) as seen:
            super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        counted = labels[:, 1:] != IGNORE_INDEX
        loss = divergence(expected[:, :-1][counted], seen[0]["logits"][:, :-1][counted]).sum()
        if num_items_in_batch is None:
            loss = loss / counted.sum()
        else:
            # With `average_tokens_across_devices`, the count is over all ranks, and data parallelism averages the
            # gradients over them: without the factor the step would be too small by the number of ranks.
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * ranks / num_items_in_batch
        return (loss, seen[0]) if return_outputs else loss


def divergence(expected: Tensor, predicted: Tensor) -> Tensor:
    """Return KL(expected || predicted) of two rows of logits, `[rows]`, in nats.

    Args:
        expected (`Tensor`): logits `[rows, vocabulary]`.
        predicted (`Tensor`): logits `[rows, vocabulary]`.
    """
    target, log_probs = expected.float().log_softmax(-1), predicted.float().log_softmax(-1)
    return (target.exp() * (target - log_probs)).sum(-1)
