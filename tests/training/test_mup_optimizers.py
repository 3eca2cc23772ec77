"""muP's rates are those of AdamW: every other optimizer is refused, and a factory makes its own groups."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_warmscale.mup import mup_optimizer, mup_param_groups
from hf_warmscale.training import ContinualTrainer, Stage
from tests.training.test_combinations import mup_model
from tests.training.tiny import arguments, replay

KEYS = ("lr", "weight_decay", "eps", "name")


def trainer(output: Path, settings: dict[str, Any], **more: Any) -> ContinualTrainer:
    stage = Stage("first", "constant", replay(0.3), max_steps=2)
    args = arguments(output, save_strategy="no", weight_decay=0.1, **settings)
    return ContinualTrainer(mup_model(), args, stage=stage, **more)


def groups(found: Any) -> list[tuple[Any, ...]]:
    return [(group.get("initial_lr", group["lr"]), *(group[key] for key in KEYS[1:])) for group in found]


EXPECTED = groups(mup_param_groups(mup_model(), lr=1e-2, weight_decay=0.1))


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused"])
def test_kinds_of_adamw_have_the_groups(name: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, {"optim": name})
    run.train()
    assert run.optimizer is not None
    assert groups(run.optimizer.param_groups) == EXPECTED


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_a_class_of_adam_has_the_groups(kind: Any, tmp_path: Path) -> None:
    run = trainer(tmp_path, {}, optimizer_cls_and_kwargs=(kind, {"lr": 1e-2, "betas": (0.9, 0.95)}))
    run.train()
    assert run.optimizer is not None
    assert groups(run.optimizer.param_groups) == EXPECTED


def test_the_factory_of_mup_has_the_groups(tmp_path: Path) -> None:
    args = arguments(tmp_path, weight_decay=0.1)
    run = trainer(tmp_path, {}, optimizer_cls_and_kwargs=mup_optimizer(args))
    run.train()
    assert run.optimizer is not None
    assert groups(run.optimizer.param_groups) == EXPECTED


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adagrad", "adafactor"])
def test_other_optimizers_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learning rates are those of AdamW, but the optimizer is"):
        trainer(tmp_path, {"optim": name}).train()
    kinds = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, "adagrad": torch.optim.Adagrad}
    if name in kinds:
        with pytest.raises(ValueError, match="but the optimizer is"):
            trainer(tmp_path, {}, optimizer_cls_and_kwargs=(kinds[name], {"lr": 1e-2})).train()
