"""Prune while training: a callback that keeps the smallest weights at zero."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_warmscale.architecture import Role
from hf_warmscale.compression.magnitude import check_schedule, extend_masks, num_pruned, sparsity_at
from hf_warmscale.compression.master_weights import MasterWeights, master_weights
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.resuming import MUST_CONTINUE


class MagnitudePruningCallback(TrainerCallback, ExportableState):
    """Zero the smallest weights of a model step by step while it trains (iterative magnitude pruning, 2002.11794).

    The k-th sparsity of the schedule (from 1) holds from optimizer step `k * every` on. At that step the weights of
    smallest magnitude are pruned, over all weights of the roles together; of equal ones the first in the model's
    order. The number of pruned weights is `round(sparsity * weights)`. After every later step they are set to zero
    again, so parameter names, `torch.compile` and saving stay as they are.

    Works with any `Trainer`, on one or more processes (each holds one byte a weight), and under ZeRO, where the
    float32 master weights are pruned. A run that was killed continues bit for bit: the masks are read off the weights,
    where a pruned weight is +0 and another weight that happens to be zero is -0. A pruned stage is not
    resumed without the callback.

    Args:
        schedule (`Sequence[float]`): ascending shares of zeros, each in (0, 1).
        every (`int`): optimizer steps from one sparsity to the next.
        roles (`Sequence[str]`): the roles of the weights that are pruned; see [`Role`].
        keep_zeros (`bool`): begin with the weights that are +0 at the start as pruned. Use it in a new stage of a
            pruned model; without it they are trained again until the first sparsity.

    Raises:
        ValueError: for a schedule that does not ascend within (0, 1), `every` below 1, or an unknown role; at the
            start of the training, if it is too short for the schedule, if it is resumed with another schedule, if
            more weights are zero than the first sparsity asks for, or if the weights are out of reach (FSDP,
            adapters).

    Example:

    ```python
    >>> pruning = MagnitudePruningCallback(schedule=(0.3, 0.5, 0.6), every=200)
    >>> ContinualTrainer(model, args, stage=stage, callbacks=[pruning]).train()
    ```
    """

    def __init__(
        self,
        schedule: Sequence[float],
        every: int,
        roles: Sequence[Role] = ("hidden",),
        *,
        keep_zeros: bool = False,
    ) -> None:
        self.schedule, self.every, self.keep_zeros = check_schedule(schedule, every), every, keep_zeros
        self.roles: tuple[Role, ...] = tuple(roles)
        for role in self.roles:
            refuse_unknown("role", role, get_args(Role))
        self.masks: dict[str, Tensor] = {}
        """True where a weight is pruned, by the name of the parameter."""
        self.weights: MasterWeights

    def state(self) -> dict[str, Any]:
        """Return what every checkpoint records: the arguments. The masks follow from the weights."""
        settings = {"schedule": list(self.schedule), "every": self.every, "roles": list(self.roles)}
        return {"args": {**settings, "keep_zeros": self.keep_zeros}, "attributes": {}, MUST_CONTINUE: True}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the weights and, in a resumed run, the masks."""
        if args.load_best_model_at_end:
            raise ValueError("load_best_model_at_end may bring back weights from before the pruning; turn it off.")
        if state.max_steps < self.every * len(self.schedule):
            raise ValueError(
                f"The training ends at step {state.max_steps}, before the last sparsity at step "
                f"{self.every * len(self.schedule)}; train for longer, or lower `every`."
            )
        if state.global_step:
            self._refuse_another_schedule(state)
        self.weights = master_weights(kwargs["model"], args, self.roles)
        self.masks = {name: self._resumed_mask(name, state.global_step) for name in self.weights.names}
        pruned, due = self._num_marked(), self._due(state.global_step)
        first = self._due(self.every)
        if state.global_step < self.every and pruned > first:
            raise ValueError(
                f"{pruned:,} weights are zero already, and the first sparsity, {self.schedule[0]:g}, asks for "
                f"{first:,}; begin the schedule above."
            )
        if state.global_step >= self.every and pruned != due:
            raise ValueError(
                f"At step {state.global_step} {due:,} weights should be pruned, but {pruned:,} are; resume from a "
                "checkpoint of the pruned run."
            )

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prune more if the schedule says so, and set all that is pruned to zero."""
        step = state.global_step + 1  # counted only after this event
        if step < self.every and not self.keep_zeros:
            return
        if step % self.every == 0:
            extend_masks(self.weights.read, self.masks, self._due(step))
        for name, mask in self.masks.items():
            weight = self.weights.read(name)
            # The sign tells a pruned zero from another one, so that masks can be read off the weights of a checkpoint.
            weight.masked_fill_(weight == 0, -0.0).masked_fill_(mask, 0.0)
            self.weights.write(name, weight)

    def _resumed_mask(self, name: str, step: int) -> Tensor:
        weight = self.weights.read(name)
        if step < self.every and not self.keep_zeros:
            return torch.zeros_like(weight, dtype=torch.bool)
        return (weight == 0) & ~weight.signbit()

    def _due(self, step: int) -> int:
        """Return how many weights are pruned after a step."""
        total = sum(mask.numel() for mask in self.masks.values())
        return num_pruned(sparsity_at(self.schedule, self.every, step), total)

    def _num_marked(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    def _refuse_another_schedule(self, state: TrainerState) -> None:
        saved: Any = state.stateful_callbacks or {}  # a list of callbacks before, a dict of their states after a load
        recorded = saved.get(type(self).__name__)
        if isinstance(recorded, list):  # several callbacks of this class
            own = self.state()["args"]
            recorded = next((each for each in recorded if each["args"] == own), recorded[0])
        if not isinstance(recorded, dict):
            raise ValueError(
                f"The run was not pruned until step {state.global_step}, where it is resumed; prune from its weights "
                "in a new stage, which starts at step 0."
            )
        began = {"keep_zeros": False, **recorded["args"]}  # earlier versions did not know it
        for name, value in self.state()["args"].items():
            if began[name] != value:
                raise ValueError(
                    f"The run was pruned with {name} {began[name]} and is resumed with {value}; pass what it began "
                    "with, or prune further in a new stage."
                )
