"""The list of runs of `study.yaml`, and what each of them waits for."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name (`str`): of its result file.
        arm (`str`): `"scratch"`, or the operator that makes its first weights of the base.
        sizes (`dict[str, int]`): what differs from the base model.
        seed (`int`): of the weights, of the growth and of the order of the data.
        lr_factor (`float`): on the inherited learning rate.
        log2_lr (`int` or `None`): the learning rate, where it is not inherited.
        tokens_per_parameter (`tuple[float, ...]`): a cooldown ends at each of these.
        compute_of (`tuple[float, ...]`): instead, the base's own tokens and those that its shape gets for the compute
            of a 2x run of so many tokens per parameter.
    """

    name: str
    arm: str
    sizes: dict[str, int]
    seed: int
    tokens_per_parameter: tuple[float, ...]
    lr_factor: float = 1.0
    log2_lr: int | None = None
    compute_of: tuple[float, ...] = ()


def list_runs(study: dict[str, Any]) -> Iterator[Run]:
    """Yield all runs, those that others wait for first, then by importance."""
    first, *others = study["seeds"]
    base = study["base"]
    for log2_lr in base["log2_lrs"]:
        yield Run(
            f"base/lr{log2_lr}-seed{first}", "scratch", {}, first, (base["tokens_per_parameter"],), log2_lr=log2_lr
        )
    for seed in others:
        yield Run(f"base/seed{seed}", "scratch", {}, seed, (base["tokens_per_parameter"],))
        yield from _width_2x(study, seed)
    yield from _single(study, "depth_2x", {"num_hidden_layers": 2 * study["model"]["num_hidden_layers"]}, first)
    yield from _width_2x(study, first)
    control = tuple(study["control"]["compute_of_tokens_per_parameter"])
    yield Run(f"control/longer-seed{first}", "scratch", {}, first, (), compute_of=control)
    yield from _single(study, "width_4x", wider(study, 4), first)


def _width_2x(study: dict[str, Any], seed: int) -> Iterator[Run]:
    part = study["width_2x"]
    for factor in part["scratch_lr_factors"]:
        name = f"width_2x/scratch-lr{factor}-seed{seed}"
        yield Run(name, "scratch", wider(study, 2), seed, (part["tokens_per_parameter"],), lr_factor=factor)
    for arm in part["arms"]:
        longer = seed == study["seeds"][0] and arm in part["longer"]["arms"]
        tokens = part["longer"]["tokens_per_parameter"] if longer else [part["tokens_per_parameter"]]
        yield Run(f"width_2x/{arm}-seed{seed}", arm, wider(study, 2), seed, tuple(tokens))


def _single(study: dict[str, Any], part: str, sizes: dict[str, int], seed: int) -> Iterator[Run]:
    for arm in study[part]["arms"]:
        yield Run(f"{part}/{arm}-seed{seed}", arm, sizes, seed, (study[part]["tokens_per_parameter"],))


def wider(study: dict[str, Any], factor: int) -> dict[str, int]:
    """Return the sizes of a model that is `factor` times as wide as the base."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    return {name: factor * study["model"][name] for name in names}


def prerequisites(study: dict[str, Any], run: Run) -> list[str]:
    """Return the names of the runs whose results a run needs."""
    first = study["seeds"][0]
    if run.log2_lr is not None:
        return []
    rates = [f"base/lr{log2_lr}-seed{first}" for log2_lr in study["base"]["log2_lrs"]]
    return rates if run.arm == "scratch" or run.seed == first else [*rates, f"base/seed{run.seed}"]


def inherited_lr(study: dict[str, Any], results: Path) -> int:
    """Return the log2 of the best learning rate of the base."""
    first = study["seeds"][0]

    def loss(log2_lr: int) -> float:
        result = json.loads((results / f"base/lr{log2_lr}-seed{first}.json").read_text())
        return float(result["cooled"][-1]["validation_loss"])

    rates: list[int] = study["base"]["log2_lrs"]
    return min(rates, key=loss)


def base_name(study: dict[str, Any], run: Run, results: Path) -> str:
    """Return the run whose model is grown."""
    first = study["seeds"][0]
    return f"base/lr{inherited_lr(study, results)}-seed{first}" if run.seed == first else f"base/seed{run.seed}"
