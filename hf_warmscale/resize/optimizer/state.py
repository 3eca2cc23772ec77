"""Grow the training state that Trainer saves beside a model, so that training continues instead of restarting."""

import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from hf_warmscale.checkpoints import explained_full_disk, skeleton
from hf_warmscale.mup import TrainingFactors, is_mup, mup_param_groups
from hf_warmscale.resize.growing.replay import replay_stored
from hf_warmscale.resize.optimizer.groups import OWN_KEYS, SavedOptimizer, group_names, grown_factors, read_groups
from hf_warmscale.resize.optimizer.moments import POWERS, Moments, moment_transfer
from hf_warmscale.resize.planning.plan import Plan
from hf_warmscale.resize.planning.request import Growth
from hf_warmscale.resize.planning.transfer import Transfer, transfer_tensor
from hf_warmscale.staging import staged_file

OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"
ALONGSIDE = ("rng_state*.pth", "scaler.pt", "stage.json", "trainer_state.json")
"""Other files that a resumed Trainer reads; they are copied. The last one marks the folder as one to resume from."""


def grow_optimizer_state(
    source: str | os.PathLike[str],
    grown: str | os.PathLike[str],
    *,
    moments: Moments = "scale",
    base_config: PreTrainedConfig | None = None,
    factors: TrainingFactors | None = None,
) -> TrainingFactors | None:
    """Grow the optimizer state of a Trainer checkpoint with its model, into the folder of the grown model.

    Writes `optimizer.pt` and `scheduler.pt` and copies the trainer's state, so that
    `train(resume_from_checkpoint=grown)` continues. A muP model needs [`ContinualTrainer`] or [`mup_optimizer`]; any
    other model needs `mup_optimizer(args, factors=...)` with the result of this function, which is also in
    `mup_factors.json`. A plain Trainer has too few groups: an n-fold `clone` needs lr / n, weight decay * n and
    eps / n for its matrices, and other factors elsewhere.

    Args:
        source (`str` or `PathLike`): the checkpoint that was grown, with its `optimizer.pt` of Adam, AdamW or
            `torch.optim.Muon`.
        grown (`str` or `PathLike`): the result of [`grow_checkpoint`], or of [`grow_from_pretrained`] and
            `save_pretrained`.
        moments (`str`): `"scale"` scales the moments like the gradients, so that an exact growth continues exactly;
            `"asymmetric_reset"` does so for the first copies and sets those of the others to 0, so that copies move
            apart (arXiv:2602.02472); `"drop"` restarts the moments and keeps groups and schedule.
        base_config (`PreTrainedConfig`, *optional*): the argument of [`mup_optimizer`] when the source was trained.
        factors (`TrainingFactors`, *optional*): likewise.

    Returns:
        `TrainingFactors` or `None`: for `mup_optimizer`; `None` for a muP model, which knows its groups.

    Raises:
        FileNotFoundError: if a folder or its `optimizer.pt` is missing.
        ValueError: if the state belongs to another model or optimizer or is sharded, or `grown` was made from other
            weights.

    Example:

    ```python
    >>> grow_checkpoint("run/checkpoint-1000", "grown/checkpoint-1000", hidden_size=1152)
    >>> factors = grow_optimizer_state("run/checkpoint-1000", "grown/checkpoint-1000")
    >>> trainer = Trainer(model, args, optimizer_cls_and_kwargs=mup_optimizer(args, factors=factors), ...)
    >>> trainer.train(resume_from_checkpoint="grown/checkpoint-1000")
    ```
    """
    if moments not in get_args(Moments):
        raise ValueError(f"moments is {moments!r}; use one of {', '.join(get_args(Moments))}.")
    source, grown = Path(source), Path(grown)
    state = _load(source / OPTIMIZER_FILE)
    growth = replay_stored(source, grown)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    saved = read_groups(state, config, growth.plan.source, base_config=base_config, factors=factors)
    by_rules = is_mup(config) and saved.kind == "adam"
    needed = None if by_rules else grown_factors(growth.plan, saved)
    groups = _grown_groups(growth, saved, needed)
    numbers = {
        name: number for group in groups for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    # An empty state makes the optimizer start its moments anew, from step 0.
    moved = {} if moments == "drop" else _grown_moments(growth.plan, saved, numbers, first_only=moments != "scale")
    content: dict[str, dict[str, Any]] = {OPTIMIZER_FILE: {"state": moved, "param_groups": groups}}
    if (source / SCHEDULER_FILE).is_file():
        content[SCHEDULER_FILE] = _grown_schedule(_load(source / SCHEDULER_FILE), groups)
    with explained_full_disk(grown):
        for name, value in content.items():
            _save(grown / name, value)
        if needed is not None:
            needed.save(grown)
        for path in (path for pattern in ALONGSIDE for path in source.glob(pattern)):
            shutil.copy2(path, grown / path.name)
    return needed


def _load(path: Path) -> dict[str, Any]:
    """Read a file of Trainer's without running code from it."""
    if not path.is_file():
        _refuse_sharded(path.parent)
        raise FileNotFoundError(f"There is no {path}; train with save_only_model=False, or grow the weights alone.")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as plain tensors; take a checkpoint that is complete.") from error
    return content


def _refuse_sharded(folder: Path) -> None:
    if any(folder.glob("global_step*")) or any(folder.glob("optimizer_*")) or (folder / "optimizer.bin").exists():
        raise ValueError(
            f"The optimizer state in {folder} is sharded by DeepSpeed or FSDP and cannot be grown; train the source "
            "under plain DDP, which saves it whole, or start the grown model with new moments and a warmup."
        )


def _grown_groups(growth: Growth, saved: SavedOptimizer, factors: TrainingFactors | None) -> list[dict[str, Any]]:
    """Return the groups of the grown model as `optimizer.state_dict()` has them, with their parameters' names."""
    model = skeleton(growth.config)
    trained = {name for group in saved.groups for name in group.names}
    for name, parameter in model.named_parameters():
        # `mup_param_groups` takes trainable parameters alone, so what was frozen in the source stays without state.
        parameter.requires_grad_(growth.plan.copy(name).source in trained)
    made = mup_param_groups(
        model,
        lr=saved.chosen("lr"),
        weight_decay=saved.chosen("weight_decay"),
        eps=saved.chosen("eps"),
        factors=factors,
    )
    first = saved.state["param_groups"][0]
    # The factor of the schedule at the saved step; all groups share it.
    progress = first["lr"] / first["initial_lr"] if first.get("initial_lr") else 1.0
    shared = {key: value for key, value in first.items() if key not in OWN_KEYS}
    groups: list[dict[str, Any]] = []
    for group, names in zip(made, group_names(made, model), strict=True):
        start = sum(len(before["params"]) for before in groups)
        groups.append(
            {
                **shared,
                "lr": group["lr"] * progress,
                "initial_lr": group["lr"],
                "weight_decay": group["weight_decay"],
                "eps": group["eps"],
                "name": group["name"],
                "params": list(range(start, start + len(names))),
                "param_names": list(names),
            }
        )
    return groups


def _grown_moments(
    plan: Plan, saved: SavedOptimizer, numbers: Mapping[str, int], *, first_only: bool
) -> dict[int, dict[str, Any]]:
    """Return the state of every parameter of the grown model, by its number."""
    sources = {name: saved.state["state"].get(number, {}) for name, number, _ in saved.members()}
    moved, seen = {}, set[str]()
    for name, number in numbers.items():
        transfer = plan.copy(name)
        # Copies made by depth are whole tensors, which `first_copies_only` cannot see inside one transfer.
        later = first_only and transfer.source in seen
        seen.add(transfer.source)
        zero = later or plan.is_new(plan.target.parameters[name])
        if not plan.operator.keeps_logits:  # another function: what is copied keeps its moments as they are
            transfer = replace(transfer, scale=1.0, weights=(None,) * len(transfer.index))
        moved[number] = {
            key: _grown_value(key, value, transfer, first_only=first_only, zero=zero)
            for key, value in sources[transfer.source].items()
        }
    return moved


def _grown_value(key: str, value: Any, transfer: Transfer, *, first_only: bool, zero: bool) -> Any:
    """Return one entry of the state: a moment, or a count of steps."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    moment = moment_transfer(transfer, POWERS[key], first_copies_only=first_only, zero=zero)
    return transfer_tensor(moment, value, key=key, dtype=value.dtype)


def _grown_schedule(state: dict[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state of a torch scheduler for the new groups: its lists with one entry a group."""
    if "base_lrs" not in state:
        return state  # it keeps a step alone
    lambdas = state.get("lr_lambdas")
    return {
        **state,
        "base_lrs": [group["initial_lr"] for group in groups],
        "_last_lr": [group["lr"] for group in groups],
        **({} if lambdas is None else {"lr_lambdas": [lambdas[0]] * len(groups)}),
    }


def _save(path: Path, content: dict[str, Any]) -> None:
    with staged_file(path) as staging:
        torch.save(content, staging)
