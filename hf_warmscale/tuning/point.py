"""One training of a sweep, by its place in it."""

from dataclasses import asdict, dataclass

from hf_warmscale.studies import PlannedRun

RUNS = "runs"
"""The folder of the runs below that of their study."""


@dataclass(frozen=True, order=True)
class Point:
    """One training of a study: the size (a width or a depth), the base learning rate, the seed.

    Args:
        size (`int`): the hidden size, or the number of layers.
        lr (`float`): the base learning rate.
        seed (`int`): of initialisation and data.

    Example:

    ```python
    >>> Point(size=64, lr=0.01, seed=0)
    Point(size=64, lr=0.01, seed=0)
    ```
    """

    size: int
    lr: float
    seed: int

    @property
    def run_name(self) -> str:
        """The name of its run in a study."""
        return f"{RUNS}/size-{self.size}_lr-{float(self.lr)!r}_seed-{self.seed}"

    def planned(self) -> PlannedRun:
        """Return the run to plan for it."""
        return PlannedRun(self.run_name, asdict(self))

    @classmethod
    def of(cls, run: PlannedRun) -> "Point":
        """Return the point of a planned run."""
        return cls(**run.content)
