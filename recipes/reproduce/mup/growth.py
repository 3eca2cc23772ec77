"""Does the inherited learning rate stay the best after growth? A sweep from scratch, then one after each growth.

The first size is swept from scratch; the lowest point of its grid is the inherited rate. Each later size starts from
the one before, trained at the inherited rate and grown by `szp` (one source for each seed), and is swept again: a new
optimizer, a new warmup, other data, the same number of steps. The control is swept in the same way, but not grown: it
tells what training on does to the best rate from what the width does to it.
"""

import json
import math
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from hf_warmscale import grow_from_pretrained
from hf_warmscale.checkpoints import staged_directory, write_json
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.tuning import Curve, Point, ProxyTask, TransferResult, at_size, find_optima, sweep, train_model
from hf_warmscale.tuning.ladder import describe_study
from hf_warmscale.tuning.transfer_figure import draw_transfer

DATA_SEEDS = 1000
"""The data of two stages differ: their seeds are this far apart."""


@dataclass(frozen=True)
class Stage:
    """The trainings at one size.

    Args:
        task (`ProxyTask`): the data and the optimizer.
        config (`MupConfig`): of this size.
        checkpoints (`Path`): where every trained model is kept.
        index (`int`): how many growths came before.
        source (`Stage`, *optional*): the size before; without one the models start from scratch.
        source_lr (`float`): what the source is trained at.
    """

    task: ProxyTask
    config: MupConfig
    checkpoints: Path
    index: int = 0
    source: "Stage | None" = None
    source_lr: float = 0.0

    def train(self, point: Point) -> float:
        """Train one point, keep its weights and return its validation loss."""
        model = self.start(point.seed)
        loss = train_model(self.task, model, lr=point.lr, seed=point.seed + self.index * DATA_SEEDS)
        if not self.folder(point).exists():
            with staged_directory(self.folder(point)) as folder:
                model.save_pretrained(folder)
        return loss

    def start(self, seed: int) -> MupForCausalLM:
        """Return the model before training: from scratch, or grown from the source of the same seed."""
        if self.source is None:
            torch.manual_seed(seed)
            return MupForCausalLM(self.config)
        point = Point(self.source.config.hidden_size, self.source_lr, seed)
        if not self.source.folder(point).exists():
            self.source.train(point)
        source: MupForCausalLM = MupForCausalLM.from_pretrained(self.source.folder(point))
        if self.config.hidden_size == source.config.hidden_size:
            return source
        widths = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        sizes = {name: getattr(self.config, name) for name in widths}
        grown = grow_from_pretrained(source, **sizes, width="szp", seed=seed)
        assert isinstance(grown, MupForCausalLM)
        assert grown.config.logits_scaling == self.config.logits_scaling
        return grown

    def folder(self, point: Point) -> Path:
        """Where the weights of a trained point are: of this very study."""
        digest = sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        return self.checkpoints / digest[:12] / point.run_name

    def identity(self) -> dict[str, Any]:
        """Return what the runs of this stage depend on beside their rate and seed."""
        return {**describe_study(self.task.settings(), self.config, "width"), "source_lr": self.source_lr}


def run_growth(study: dict[str, Any], output: Path, cache: Path, jobs: int) -> None:
    """Sweep every size of the study and write `growth.json` and `growth.png`."""
    stage, curves, inherited = from_scratch(study, output, cache, jobs)
    for size in study["growth"]["sizes"][1:]:
        config = at_size(stage.config, "width", size)
        stage = Stage(stage.task, config, stage.checkpoints, stage.index + 1, stage, inherited)
        curves |= sweep_stage(stage, around(inherited, study), seeds=study["seeds"], output=output, jobs=jobs)
    write_growth(output, inherited, TransferResult("completep", "width", curves, find_optima(curves)))


def run_growth_control(study: dict[str, Any], output: Path, cache: Path, jobs: int) -> None:
    """Sweep the first size once more, trained on instead of grown."""
    first, _, inherited = from_scratch(study, output, cache, jobs)
    stage = Stage(first.task, first.config, cache / "growth-control", 1, first, inherited)
    folder = output.with_name("growth-control")
    curves = sweep_stage(stage, around(inherited, study), seeds=study["seeds"], output=folder, jobs=jobs)
    write_growth(folder, inherited, TransferResult("completep", "width", curves, find_optima(curves)))


def from_scratch(study: dict[str, Any], output: Path, cache: Path, jobs: int) -> tuple[Stage, dict[int, Curve], float]:
    """Return the first stage, its curve, and the rate that all later stages inherit."""
    first = study["growth"]["sizes"][0]
    stage = Stage(ProxyTask(**study["task"]), own_base(study["model"], first), cache / "growth")
    lrs = [2.0**exponent for exponent in study["log2_lrs"]]
    curves = sweep_stage(stage, lrs, seeds=study["seeds"], output=output, jobs=jobs)
    return stage, curves, lowest(curves[first])


def around(inherited: float, study: dict[str, Any]) -> list[float]:
    """Return the grid of a stage that inherits its rate."""
    return [inherited * 2.0**octave for octave in study["growth"]["octaves"]]


def sweep_stage(stage: Stage, lrs: list[float], *, seeds: int, output: Path, jobs: int) -> dict[int, Curve]:
    """Sweep one size."""
    size = stage.config.hidden_size
    return dict(
        sweep(
            partial(Stage.train, stage),
            sizes=[size],
            lrs=lrs,
            seeds=seeds,
            output=output / f"size-{size}",
            study=stage.identity(),
            tokens=stage.task.tokens_hash(),
            jobs=jobs,
        )
    )


def write_growth(output: Path, inherited: float, result: TransferResult) -> None:
    """Write the curves, the best rates and the picture."""
    write_json(output / "growth.json", {"inherited_lr": inherited, **result.to_dict()})
    if len(result.curves) > 1:
        draw_transfer(output / "growth.png", [result])


def growth_rows(inherited: float, result: TransferResult) -> list[dict[str, object]]:
    """Return one row for each size: its best rate beside the inherited one, and what inheriting costs."""
    rows: list[dict[str, object]] = []
    for optimum in result.optima:
        losses = result.curves[optimum.size][inherited].values()
        offset = optimum.log2_lr - math.log2(inherited)
        rows.append(
            {
                "width": optimum.size,
                "log2 inherited lr": round(math.log2(inherited), 2),
                "log2 best lr": round(optimum.log2_lr, 2),
                "bootstrap": f"{optimum.low:.2f} .. {optimum.high:.2f}",
                "best - inherited (octaves)": round(offset, 2),
                "within half an octave": abs(offset) <= 0.5 and not optimum.at_edge,
                "loss at inherited": round(sum(losses) / len(losses), 4),
                "lowest loss": round(optimum.loss, 4),
            }
        )
    return rows


def own_base(model: dict[str, Any], width: int) -> MupConfig:
    """Return the study's model at a width, as its own base."""
    small = {"base_hidden_size": model["hidden_size"], "base_num_hidden_layers": model["num_hidden_layers"]}
    config = at_size(MupConfig(**model, mup=small), "width", width)
    widths = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    return config.with_mup(**{f"base_{name}": getattr(config, name) for name in widths})


def lowest(curve: Curve) -> float:
    """Return the rate with the lowest mean loss."""
    return min(curve, key=lambda lr: sum(curve[lr].values()) / len(curve[lr]))
