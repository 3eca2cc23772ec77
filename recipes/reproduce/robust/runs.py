"""The list of runs of `study.yaml`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name (`str`): of its result file.
        kind (`str`): `"base"`, `"arm"` or `"sweep"`.
        seed (`int`): of the first weights and of the order of the rows.
        after (`tuple[str, ...]`): the runs whose models it needs.
        arm (`str`): of the study.
        size (`str`): `"small"` or `"large"`.
        trains (`str`): `"all"`, `"adapter"` or `"last"`.
        steps (`int`): the length.
        lr (`float`): the peak learning rate.
        replay (`float`): share of rows of the old domain.
        taught (`bool`): by the small model of the new domain.
    """

    name: str
    kind: str
    seed: int
    after: tuple[str, ...] = ()
    arm: str = ""
    size: str = "large"
    trains: str = "all"
    steps: int = 0
    lr: float = 0.0
    replay: float = 0.0
    taught: bool = False

    def content(self) -> dict[str, Any]:
        """Return what is stored with the result."""
        return {"run": {**asdict(self), "after": list(self.after)}}


def list_runs(design: dict[str, Any]) -> Iterator[Run]:
    """Yield every run, one seed after the other."""
    for seed in design["seeds"]:
        for size, settings in design["bases"].items():
            name = f"{size}-seed{seed}"
            after = (f"small-seed{seed}",) if size == "large" else ()
            yield Run(name, "base", seed, after, size=size, steps=settings["steps"], lr=settings["lr"])
        for arm, settings in design["arms"].items():
            settings = {"replay": design["replay"], **settings}
            after = (f"{settings['size']}-seed{seed}",)
            if arm == "teacher":  # which is also combined with the large base, without training
                after = (*after, f"large-seed{seed}")
            elif settings["size"] == "large" and (settings.get("taught") or settings["trains"] == "adapter"):
                after = (*after, f"teacher-seed{seed}")
            yield Run(f"{arm}-seed{seed}", "arm", seed, after, arm, **settings)
        yield Run(f"sweep-seed{seed}", "sweep", seed, (f"full-no-replay-seed{seed}",), "sweep")
