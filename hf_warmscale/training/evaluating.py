"""How a trainer of stages evaluates: the means over domains, forgetting, and the same loss on any number of ranks."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from hf_warmscale.training.accumulating import AccumulationMixin
from hf_warmscale.training.arguments import ContinualArguments
from hf_warmscale.training.data.rows import Rows
from hf_warmscale.training.domains import SharedEvaluation, bits_per_byte, summarise


class EvaluationMixin(AccumulationMixin):
    """Evaluate a stage by domain; without a stage as `Trainer` does. See `trainer.py`."""

    _shared_evaluation: SharedEvaluation | None = None

    def _continual_arguments(self) -> ContinualArguments:
        return self.args if isinstance(self.args, ContinualArguments) else ContinualArguments()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; of several domains also give the mean, the weighted mean and the forgetting.

        `eval_loss` is the mean over the domains, `eval_weighted_loss` the mean under `eval_weights`, and
        `eval_<domain>_forgetting` the change of a loss since the start of the stage. Each can be
        `metric_for_best_model`, also for early stopping. With `eval_tokens_per_byte`, there is
        `eval_<domain>_bits_per_byte` too.
        """
        metrics = super().evaluate(*args, **kwargs)
        given = args[0] if args else kwargs.get("eval_dataset")
        domains = self.eval_dataset if given is None else given
        if self.stage_run is None or not isinstance(domains, Mapping):
            return metrics
        prefix = args[2] if len(args) > 2 else kwargs.get("metric_key_prefix", "eval")
        named = {name: metrics.get(f"{prefix}_{name}_loss") for name in domains}
        losses = {name: loss for name, loss in named.items() if loss is not None}
        if not losses:
            return metrics
        summary = {f"{prefix}_{name}": value for name, value in self._summary(losses).items()}
        self.log(dict(summary))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, summary)
        return {**metrics, **summary}

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate one data set; on several ranks the loss is the one that a single rank computes."""
        shared = self._share_evaluation(dataloader)
        self._shared_evaluation = shared
        try:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._shared_evaluation = None
        name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        if shared is not None and output.metrics and name in output.metrics:
            output.metrics[name] = shared.loss(self.accelerator.gather)
        return output

    def _share_evaluation(self, dataloader: DataLoader[Any]) -> SharedEvaluation | None:
        rows, ranks = getattr(dataloader, "dataset", None), self.args.world_size
        config = self.accelerator.dataloader_config
        # `SharedEvaluation` counts on rank r having the batches r, r + ranks, ...; otherwise Trainer's loss stays.
        if self.stage is None or ranks == 1 or config.split_batches or config.dispatch_batches:
            return None
        if not hasattr(rows, "__len__") or self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            return None
        return SharedEvaluation(
            cast(Rows, rows),
            self.args.eval_batch_size,
            rank=self.args.process_index,
            num_ranks=ranks,
            device=self.args.device,
        )

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch; see `Trainer.prediction_step`."""
        shared = self._shared_evaluation
        if shared is None:
            return super().prediction_step(model, inputs, *args, **kwargs)
        inputs, rows = shared.next_batch(inputs)
        loss, *rest = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None:
            shared.add(loss, rows)
        return (loss, *rest)

    def _summary(self, losses: Mapping[str, float]) -> dict[str, float]:
        assert self.stage_run is not None
        arguments = self._continual_arguments()
        weights, densities = arguments.eval_weights, arguments.eval_tokens_per_byte
        summary = summarise(losses, weights if isinstance(weights, dict) else None)
        if isinstance(densities, dict):
            shared = losses.keys() & densities.keys()
            summary |= {f"{name}_bits_per_byte": bits_per_byte(losses[name], densities[name]) for name in shared}
        if self.is_in_train:
            changes = self.stage_run.forgetting(losses, self.state.global_step)
            summary |= {f"{name}_forgetting": change for name, change in changes.items()}
        return summary
