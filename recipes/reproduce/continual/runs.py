"""The list of runs of `study.yaml`: what each trains on, from where, and with which schedule."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Run:
    """One stage.

    Args:
        name (`str`): of its result file.
        seed (`int`): of the first weights and of the mixture.
        weights (`dict[str, float]`): shares of the sources.
        schedule (`dict`): name and parameters of the schedule.
        steps (`int`): length.
        parent (`str`, *optional*): the run whose model it starts from.
        replayed (`str`, *optional*): the source restricted to what its ancestors saw.
        keep (`bool`): whether the optimizer state of the parent goes on.
        part (`tuple[int, int, float, float]`, *optional*): the third of the rows (number, count), and where in it the
            rows begin and end.
    """

    name: str
    seed: int
    weights: dict[str, float]
    schedule: dict[str, Any]
    steps: int
    parent: str | None = None
    replayed: str | None = None
    keep: bool = False
    part: tuple[int, int, float, float] | None = field(default=None)


def list_runs(study: dict[str, Any]) -> list[Run]:
    """Return all runs in the order in which they are run; a parent comes before its children."""
    first, *others = study["seeds"]
    strong, *rest = study["shifts"]
    runs = [base(study, first), *shift(study, strong, first, "all_seeds"), union(study, strong, first)]
    for seed in others:
        runs += [base(study, seed), *shift(study, strong, seed, "all_seeds"), union(study, strong, seed)]
    runs += [*shift(study, strong, first, "first_seed"), alone(study, strong, first)]
    runs += list(splits(study, first))
    for domain in rest:
        runs += [*shift(study, domain, first, "all_seeds"), union(study, domain, first)]
        runs += [*shift(study, domain, first, "first_seed"), alone(study, domain, first)]
    for seed in others:
        for domain in rest:
            runs += shift(study, domain, seed, "all_seeds")
        runs += list(splits(study, seed))
    return runs


def base(study: dict[str, Any], seed: int) -> Run:
    """Return the pretraining on English."""
    return Run(f"base/seed{seed}", seed, {"english": 1.0}, cosine(study), study["steps"])


def shift(study: dict[str, Any], domain: str, seed: int, which: str) -> Iterator[Run]:
    """Yield the continued pretraining on a domain: each share of replay, re-warmed and not."""
    low = study["learning_rate"] * study["floor"]
    schedules = {"rewarmed": cosine(study), "constant": {"name": "constant", "learning_rate": low, "warmup": 0}}
    for percent in study["replay"][which]:
        weights = {domain: 1 - percent / 100} | ({"english": percent / 100} if percent else {})
        for label, schedule in schedules.items():
            yield Run(
                f"{domain}/{label}-replay{percent}-seed{seed}",
                seed,
                weights,
                schedule,
                study["steps"],
                parent=f"base/seed{seed}",
                replayed="english" if percent else None,
            )


def union(study: dict[str, Any], domain: str, seed: int) -> Run:
    """Return the training from scratch on both domains, for the steps of both."""
    weights = {"english": 0.5, domain: 0.5}
    return Run(f"{domain}/union-seed{seed}", seed, weights, cosine(study), 2 * study["steps"])


def alone(study: dict[str, Any], domain: str, seed: int) -> Run:
    """Return the training from scratch on the new domain only."""
    return Run(f"{domain}/alone-seed{seed}", seed, {domain: 1.0}, cosine(study), study["steps"])


def splits(study: dict[str, Any], seed: int) -> Iterator[Run]:
    """Yield three stages on random thirds of all text, with cosines and with the infinite schedule.

    The infinite schedule is a trunk at a constant rate. From the last part of every stage branches an anneal, on the
    rows that the trunk sees there.
    """
    part, steps = study["splits"], study["steps"]
    cut = 1 - part["anneal"]
    trunk_steps = round(cut * steps)
    high, low = (study["learning_rate"] * study[name] for name in ("plateau", "floor"))
    constant = {"name": "constant", "learning_rate": high, "warmup": 0}
    anneal = {"name": "infinite_cosine", "warmup": 0, "cooldown": 0, "constant": 0}
    anneal |= {"learning_rate": high, "constant_lr": high, "min_lr": low}
    weights = {"english": 0.25, "english_short": 0.25, "german": 0.25, "python": 0.25}
    for stage in range(part["stages"]):
        third = (stage, part["stages"])
        before = f"splits/cosine-{stage - 1}-seed{seed}" if stage else None
        yield Run(
            f"splits/cosine-{stage}-seed{seed}",
            seed,
            weights,
            cosine(study),
            steps,
            parent=before,
            part=(*third, 0, 1),
        )
        trunk, end = (f"splits/{name}-{stage}-seed{seed}" for name in ("trunk", "end"))
        previous = f"splits/end-{stage - 1}-seed{seed}" if stage else None
        schedule = constant if stage else infinite(study, trunk_steps)
        rest = {"seed": seed, "weights": weights}
        yield Run(
            trunk, **rest, schedule=schedule, steps=trunk_steps, parent=previous, keep=stage > 0, part=(*third, 0, cut)
        )
        last = {"parent": trunk, "keep": True, "steps": steps - trunk_steps, "part": (*third, cut, 1)}
        yield Run(f"splits/anneal-{stage}-seed{seed}", **rest, schedule=anneal, **last)
        yield Run(end, **rest, schedule=constant, **last)


def cosine(study: dict[str, Any]) -> dict[str, Any]:
    """Return the schedule of the paper: re-warm to the peak, re-decay to a tenth."""
    peak = study["learning_rate"]
    return {
        "name": "rewarm_cosine",
        "learning_rate": peak,
        "min_lr": study["floor"] * peak,
        "warmup": study["warmup"],
    }


def infinite(study: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the first stage of the infinite schedule, without its anneal."""
    settings = study["splits"]["infinite"]
    warmup, cooldown = (round(settings[name] * study["steps"]) for name in ("warmup", "cooldown"))
    high, low = (study["learning_rate"] * study[name] for name in ("plateau", "floor"))
    return {
        "name": "infinite_cosine",
        "learning_rate": study["learning_rate"],
        "constant_lr": high,
        "min_lr": low,
        "warmup": warmup,
        "cooldown": cooldown,
        "constant": steps - warmup - cooldown,
    }
