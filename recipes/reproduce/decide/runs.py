"""The runs of `study.yaml`: what each starts from, how long it is trained, and what it waits for."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name (`str`): of its result: study, arm, rate, seed.
        arm (`str`): `"scratch"`, `"trained-on"`, `"cooldown"`, `"cosine"`, or the operator that grows the base.
        seed (`int`): of weights, growth and order of the data.
        sizes (`dict[str, int]`): what differs from the base model.
        log2_lr (`float`, *optional*): the rate; else `octave` from the base's best.
        octave (`float`): see there.
        tokens_per_parameter (`tuple[float, ...]`): budgets, in tokens per parameter of the model that is trained.
        tokens (`tuple[float, ...]`): budgets in tokens.
        compute_of (`dict[str, int]`): instead: the tokens, and the compute with the base, of a run of these sizes.
    """

    name: str
    arm: str
    seed: int
    sizes: dict[str, int] = field(default_factory=dict)
    log2_lr: float | None = None
    octave: float = 0.0
    tokens_per_parameter: tuple[float, ...] = ()
    tokens: tuple[float, ...] = ()
    compute_of: dict[str, int] = field(default_factory=dict)


def list_runs(design: dict[str, Any]) -> Iterator[Run]:
    """Yield all runs, those that others wait for first."""
    first, *others = design["seeds"]
    budget = (float(design["base"]["tokens_per_parameter"]),)
    for rate in design["base"]["log2_lrs"]:
        yield Run(f"base/lr{rate}-seed{first}", "scratch", first, log2_lr=rate, tokens_per_parameter=budget)
    for seed in others:
        yield Run(f"base/best-seed{seed}", "scratch", seed, tokens_per_parameter=budget)
    yield from grown(design, "E1", design["E1"])
    yield from trained_on(design)
    for part in ("width", "depth"):
        yield from grown(design, f"E5-{part}", {**design["E5"], **design["E5"][part]})
    yield from schedules(design)


def grown(design: dict[str, Any], study: str, part: dict[str, Any]) -> Iterator[Run]:
    """Yield every arm at every rate and seed."""
    for seed in design["seeds"]:
        for arm in part["arms"]:
            for octave in part["octaves"]:
                name = f"{study}/{arm}-octave{octave:+}-seed{seed}"
                budgets = tuple(part["tokens_per_parameter"])
                yield Run(name, arm, seed, part["sizes"], octave=octave, tokens_per_parameter=budgets)


def trained_on(design: dict[str, Any]) -> Iterator[Run]:
    """Yield the control: the cooled base, trained on."""
    part, of = design["E2"], design[design["E2"]["of"]]
    for seed in design["seeds"]:
        for octave in part["octaves"]:
            name = f"E2/trained-on-octave{octave:+}-seed{seed}"
            last = (max(of["tokens_per_parameter"]),)
            yield Run(name, "trained-on", seed, octave=octave, tokens_per_parameter=last, compute_of=of["sizes"])


def schedules(design: dict[str, Any]) -> Iterator[Run]:
    """Yield one trunk for all budgets, and a cosine for each."""
    part = design["E8"]
    for seed in design["seeds"]:
        for octave in part["octaves"]:
            budgets = tuple(map(float, part["tokens"]))
            yield Run(f"E8/cooldown-octave{octave:+}-seed{seed}", "cooldown", seed, octave=octave, tokens=budgets)
            for tokens in budgets:
                name = f"E8/cosine-{tokens / 1e6:g}M-octave{octave:+}-seed{seed}"
                yield Run(name, "cosine", seed, octave=octave, tokens=(tokens,))


def prerequisites(design: dict[str, Any], run: Run) -> tuple[str, ...]:
    """Return the runs whose results a run needs: all of the base's rates, and the base that it starts from."""
    if run.log2_lr is not None:
        return ()
    first = design["seeds"][0]
    rates = tuple(f"base/lr{rate}-seed{first}" for rate in design["base"]["log2_lrs"])
    starts_anew = run.arm in ("scratch", "cooldown", "cosine")
    return rates if starts_anew or run.seed == first else (*rates, f"base/best-seed{run.seed}")


def best_rate(design: dict[str, Any], results: Path) -> float:
    """Return the log2 of the base's best rate; a rate at which it diverged is never the best."""
    first = design["seeds"][0]

    def loss(rate: float) -> float:
        cooled = json.loads((results / f"base/lr{rate}-seed{first}.json").read_text())["cooled"][-1]
        found = cooled.get("selection_loss")
        return float("inf") if found is None else float(found)

    rates: list[float] = design["base"]["log2_lrs"]
    return min(rates, key=loss)


def base_of(design: dict[str, Any], run: Run, results: Path) -> str:
    """Return the run whose model a run starts from."""
    first = design["seeds"][0]
    return f"base/lr{best_rate(design, results)}-seed{first}" if run.seed == first else f"base/best-seed{run.seed}"
