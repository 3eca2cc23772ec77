"""How a trainer of stages measures losses by source: from the one forward pass that trains, without another loss."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_warmscale.compat.transformers import loss_shifts_labels
from hf_warmscale.training.balance import balanced
from hf_warmscale.training.data.batches import SOURCE_NUMBER
from hf_warmscale.training.evaluating import EvaluationMixin
from hf_warmscale.training.stage_run import StageRun
from hf_warmscale.training.token_loss import TokenLoss, any_label, captured, nll_of_outputs

logger = logging.getLogger(__name__)


class MeasuringMixin(EvaluationMixin):
    """Note the loss of each source in every step; without a stage nothing is noted. See `trainer.py`."""

    _waiting_sources: deque[Tensor | None] | None = None
    _token_loss: TokenLoss | None = None
    _measured_nll: Tensor | None = None
    _in_step = _is_measured = _has_warned = False

    def _prepare_measuring(self, model: nn.Module) -> None:
        """Make the loss that stands in for the model's own, once the model is wrapped."""
        self._token_loss = self._new_token_loss(self.accelerator.unwrap_model(model))
        self._shifts_labels = loss_shifts_labels(self)

    def _take_sources(self, run: StageRun, batches: Sequence[dict[str, Any]]) -> None:
        """Take the sources out of the micro-batches of a step, and count their tokens."""
        self._waiting_sources = deque(batch.pop(SOURCE_NUMBER, None) for batch in batches)
        for batch, sources in zip(batches, self._waiting_sources, strict=True):
            if sources is not None:
                run.meter.count(sources, batch, shifted=self._shifts_labels)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Make a training step on one micro-batch, and note its loss by source."""
        weight = self._balance_weight(args[0] if args else kwargs.get("num_items_in_batch"))
        if weight is None:  # unwrapping takes a few percent of the step of a small model
            return self._measured_step(model, inputs, *args, **kwargs)
        with balanced(self.accelerator.unwrap_model(model), weight):
            return self._measured_step(model, inputs, *args, **kwargs)

    def _balance_weight(self, num_items: Tensor | int | None) -> float | None:
        """Return the weight of the balance loss of one micro-batch, so that a step has the mean over them.

        Given the tokens of the step, `Trainer` adds the losses of micro-batches and ranks: each is a part of a mean by
        tokens. The balance loss of each is a mean of its own.
        """
        coefficient = self._continual_arguments().router_aux_loss_coef
        if coefficient is None or num_items is None:
            return coefficient
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return coefficient / (self.current_gradient_accumulation_steps * ranks)

    def _measured_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        sources = self._waiting_sources.popleft() if self._waiting_sources else None
        run, labels = self.stage_run, inputs.get("labels")
        self._in_step = run is not None
        try:
            if run is None or sources is None or labels is None or not self._measures_sources(run):
                return super().training_step(model, inputs, *args, **kwargs)
            assert self._token_loss is not None
            self._measured_nll, self._is_measured = None, True
            with self._installed(self._token_loss):
                loss = super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._in_step = self._is_measured = False
        # The first is from inside the model's loss; the second, for models with a loss of their own, from their
        # outputs.
        nll = self._token_loss.nll if self._token_loss.nll is not None else self._measured_nll
        if nll is not None and nll.numel() >= labels.numel():
            # Prompt tuning puts virtual tokens before each row.
            run.meter.add_losses(sources, nll.reshape(len(labels), -1)[:, -labels.shape[1] :], labels)
        self._token_loss.nll = self._measured_nll = None
        if nll is None:
            self._warn_once()
        return loss

    def _new_token_loss(self, model: nn.Module) -> TokenLoss:
        """Return the loss that stands in for the model's own."""
        return TokenLoss(model)

    def _measures_sources(self, run: StageRun) -> bool:
        """Tell whether to measure losses by source: of one source, it is the loss that is logged anyway."""
        return len(run.mixture.names) > 1

    def _installed(self, loss: TokenLoss) -> AbstractContextManager[None]:
        """Return a context in which the model calls this loss, if it can."""
        # Data parallelism of one process copies the model for each device, and a compiled one would be compiled anew.
        return loss.installed() if self.args.n_gpu <= 1 and not self.args.torch_compile else nullcontext()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the trainer does; where the model has a loss of its own, measure its outputs too.

        In a stage, a micro-batch without any label has the loss 0 and no gradient.
        """
        if self._shared_evaluation is not None and "num_items_in_batch" in kwargs:
            kwargs["num_items_in_batch"] = None  # the mean of this batch, not that of all ranks
        labels = inputs.get("labels")
        if not self._in_step or not isinstance(labels, Tensor):
            return super().compute_loss(model, inputs, *args, **kwargs)
        # A mean over no labels is 0/0, and its gradient makes every weight NaN. Whether there are any is known on the
        # device alone, so the model gets some label in any case, and the loss of it is multiplied by 0.
        has_labels = any_label(labels, shifted=self._shifts_labels)
        inputs["labels"] = torch.where(has_labels, labels, 0)
        capture: AbstractContextManager[list[Mapping[str, Any]]] = nullcontext([])
        if self._is_measured:
            capture = captured(model)
        with capture as seen:
            result = super().compute_loss(model, inputs, *args, **kwargs)
        inputs["labels"] = labels
        if self._token_loss is not None and self._token_loss.nll is None and seen and self._shifts_labels:
            self._measured_nll = nll_of_outputs(seen[0], labels)
        loss, *outputs = result if isinstance(result, tuple) else (result,)
        loss = loss * has_labels.to(loss.device)
        return (loss, *outputs) if outputs else loss

    def _warn_once(self) -> None:
        """Warn that a model gives no losses by source."""
        if not self._has_warned:
            self._has_warned = True
            name = type(self.accelerator.unwrap_model(self.model)).__name__
            logger.warning("%s gives no loss of the next token, so there are no losses by source.", name)
