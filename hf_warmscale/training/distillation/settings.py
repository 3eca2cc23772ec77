"""How a student is drawn towards its teacher: the numbers, checked."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.distillation.divergence import DIRECTIONS, Direction


@dataclass(frozen=True)
class DistillationSettings:
    """The weights of the loss; see [`DistillationTrainer`].

    Args:
        temperature (`float`): of both softmaxes.
        alpha (`float`): share of the divergence from the teacher; the cross-entropy has the rest.
        direction (`str`): `"forward"` for KL(teacher, student), `"reverse"` for KL(student, teacher).
        sources (`tuple[str, ...]`, *optional*): of the mixture, those on which the teacher is heard; by default all.
        self_kd (`float`): weight of KL(start, student) on the other sources.

    Raises:
        ValueError: naming the value that cannot be used.
    """

    temperature: float = 1.0
    alpha: float = 1.0
    direction: Direction = "forward"
    sources: tuple[str, ...] | None = None
    self_kd: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be positive.")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; it must lie between 0 (text alone) and 1 (teacher alone).")
        refuse_unknown("direction", self.direction, DIRECTIONS)
        if not (self.self_kd >= 0 and isfinite(self.self_kd)):
            raise ValueError(f"self_kd is {self.self_kd}; it must not be negative.")
        if self.sources is not None and not self.sources:
            raise ValueError(
                "sources is empty; name the sources that the teacher is heard on, or leave it out for all."
            )
        if self.self_kd and self.sources is None:
            raise ValueError(
                f"self_kd is {self.self_kd}, but the teacher is heard on every source; name its sources alone."
            )

    def numbers(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return the numbers of the sources that the teacher is heard on; `None` if those are all.

        Args:
            names (`Sequence[str]`): the sources of the mixture.

        Raises:
            ValueError: if a source is not in the mixture, or none is left for `self_kd`.
        """
        if self.sources is None:
            return None
        for name in self.sources:
            refuse_unknown("source", name, names)
        if set(self.sources) != set(names):
            return tuple(number for number, name in enumerate(names) if name in self.sources)
        if self.self_kd:
            raise ValueError(
                f"self_kd is {self.self_kd}, but the teacher is heard on every source; leave one of "
                f"{', '.join(names)} out of sources."
            )
        return None

    def describe(self) -> dict[str, Any]:
        """Return plain values for the record of a stage."""
        return {**asdict(self), "sources": None if self.sources is None else sorted(self.sources)}
