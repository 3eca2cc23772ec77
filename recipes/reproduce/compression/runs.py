"""The runs of `study.yaml`: what each is, and what it waits for."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name (`str`): of its result: study, arm, rate, seed.
        kind (`str`): `"train"`, `"prune"`, `"base"`, `"grown"` or `"heal"`.
        arm (`str`): a size of A, an arm of B, or nothing.
        seed (`int`): of weights and order of the data.
        log2_lr (`float`, *optional*): the rate itself.
        octave (`float`, *optional*): the rate, from the best of the runs that it refers to.
        after (`tuple[str, ...]`): the runs whose results it needs.
    """

    name: str
    kind: str
    arm: str
    seed: int
    log2_lr: float | None = None
    octave: float | None = None
    after: tuple[str, ...] = ()


def list_runs(design: dict[str, Any]) -> list[Run]:
    """Return all runs, those that others wait for first."""
    return [*train_large(design), *shrink_and_heal(design)]


def train_large(design: dict[str, Any]) -> Iterator[Run]:
    """Yield the runs of A: each size at each rate, the best rate on the other seeds, then the pruning."""
    part, (first, *others) = design["A"], design["seeds"]
    for size in part["sizes"]:
        rates = tuple(f"A/{size}-lr{rate}-seed{first}" for rate in part["log2_lrs"])
        for name, rate in zip(rates, part["log2_lrs"], strict=True):
            yield Run(name, "train", size, first, log2_lr=rate)
        for seed in others:
            yield Run(f"A/{size}-best-seed{seed}", "train", size, seed, octave=0.0, after=rates)
        for seed in design["seeds"]:
            own = rates if seed == first else (*rates, f"A/{size}-best-seed{seed}")
            for octave in part["prune"]["octaves"]:
                yield Run(
                    f"A/pruned-{size}-octave{octave:+}-seed{seed}", "prune", size, seed, octave=octave, after=own
                )


def shrink_and_heal(design: dict[str, Any]) -> Iterator[Run]:
    """Yield the runs of B: the base, the large model, and every arm."""
    part, (first, *others) = design["B"], design["seeds"]
    rates = tuple(f"B/base-lr{rate}-seed{first}" for rate in part["base"]["log2_lrs"])
    for name, rate in zip(rates, part["base"]["log2_lrs"], strict=True):
        yield Run(name, "base", "", first, log2_lr=rate)
    for seed in others:
        yield Run(f"B/base-best-seed{seed}", "base", "", seed, octave=0.0, after=rates)
    (octave,) = part["grown"]["octaves"]
    for seed in design["seeds"]:
        own = rates if seed == first else (*rates, f"B/base-best-seed{seed}")
        yield Run(f"B/grown-seed{seed}", "grown", "", seed, octave=octave, after=own)
    for arm in part["arms"]:
        tried = tuple(f"B/{arm}-octave{octave:+}-seed{first}" for octave in part["octaves"])
        for name, octave in zip(tried, part["octaves"], strict=True):
            yield Run(name, "heal", arm, first, octave=octave, after=(*rates, f"B/grown-seed{first}"))
        for seed in others:
            after = (*rates, *tried, f"B/base-best-seed{seed}", f"B/grown-seed{seed}")
            yield Run(f"B/{arm}-best-seed{seed}", "heal", arm, seed, after=after)


def best_of(names: tuple[str, ...], results: Path) -> tuple[str, float]:
    """Return the run with the lowest selecting loss, and its log2 rate; one that diverged is never the best."""
    found = {name: json.loads((results / f"{name}.json").read_text()) for name in names}
    name = min(names, key=lambda name: float("inf") if found[name]["select"] is None else float(found[name]["select"]))
    return name, float(found[name]["log2_lr"])
