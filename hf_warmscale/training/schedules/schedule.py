"""The learning rate schedule of a stage, as a pure function of its step. The formulas are in `rates`."""

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Literal, Self, get_args

from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.schedules import rates
from hf_warmscale.training.schedules.rates import Shape

Name = Literal["rewarm_cosine", "infinite_cosine", "infinite_inv_sqrt", "wsd", "constant"]
"""The names of the schedules."""

Duration = int | float | str
"""The length of a phase: an `int` counts steps, a `float` up to 1.0 is a fraction of the stage, and text such as
"2.5M tokens" counts tokens."""

TOKENS = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?(?:[eE][0-9]+)?)\s*([KMBT]?)\s*tokens\s*$")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

PHASES: dict[str, tuple[str, ...]] = {
    "rewarm_cosine": ("warmup",),
    "infinite_cosine": ("warmup", "cooldown", "constant"),
    "infinite_inv_sqrt": ("warmup", "cooldown", "constant"),
    "wsd": ("warmup", "cooldown"),
    "constant": ("warmup",),
}


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a stage. Call it with a zero-based step to get the rate of that step.

    It gives the rate of the reference parameter group. All other groups are multiplied by the same `factor(step)`, so
    the ratios between groups stay constant.

    Args:
        name (`str`): one of `Name`.
        learning_rate (`float`, *optional*): the peak; by default the `learning_rate` of the training arguments.
        min_lr (`float`, *optional*): the rate at the end of the stage; by default a tenth of the peak (2403.08763).
        constant_lr (`float`, *optional*): the plateau of an infinite schedule; by default 0.55 of the peak.
        warmup, cooldown, constant (`Duration`): the phases: steps (`int`), a fraction of the stage (`float` below 1)
            or tokens (`"2.5M tokens"`). An infinite schedule anneals in the steps that remain; `wsd` ends with its
            cooldown.
        cooldown_shape (`str`): the shape of the `wsd` cooldown, one of `Shape`.
        timescale (`float`): alpha in the inverse square root cooldown, 1 / sqrt(1 + alpha x).
        total_steps (`int`, *optional*): the length of the stage in steps; a `Stage` fills it in.
        tokens_per_step (`int`, *optional*): tokens in one optimizer step, needed by phases in tokens only.
        step_offset (`int`): 1 gives the zero-based step s the rate of t = s + 1, so that no step is wasted at a rate
            of 0; 0 is the indexing of transformers, t = s.

    Example:

    ```python
    >>> schedule = Schedule("wsd", learning_rate=1e-3, min_lr=0.0, warmup=100, cooldown=0.2, total_steps=1_000)
    >>> schedule(499), schedule(999)
    (0.001, 0.0)
    ```
    """

    name: Name
    learning_rate: float | None = None
    min_lr: float | None = None
    constant_lr: float | None = None
    warmup: Duration = 0.01
    cooldown: Duration | None = None
    constant: Duration | None = None
    cooldown_shape: Shape = "1-sqrt"
    timescale: float = 10.0
    total_steps: int | None = None
    tokens_per_step: int | None = None
    step_offset: Literal[0, 1] = 1

    def __post_init__(self) -> None:
        refuse_unknown("schedule", self.name, get_args(Name))
        refuse_unknown("cooldown_shape", self.cooldown_shape, get_args(Shape))
        for phase in ("cooldown", "constant"):
            if getattr(self, phase) is not None and phase not in PHASES[self.name]:
                raise ValueError(f"The schedule {self.name} has no {phase} phase; leave {phase} out.")
        if self.learning_rate is not None and not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"The learning_rate {self.learning_rate} of the schedule must be a number of at least 0.")
        if self.total_steps is not None and self.total_steps < 1:
            raise ValueError(f"total_steps is {self.total_steps}; a schedule needs at least one step.")
        if self.timescale <= 0:
            raise ValueError(f"The timescale {self.timescale} must be positive.")
        for phase in PHASES[self.name]:
            _check_duration(phase, self._phase(phase))
        if self.resolved:
            self._check_values()

    @property
    def resolved(self) -> bool:
        """Whether the rate and the length are known, so that the schedule can be called."""
        return self.learning_rate is not None and self.total_steps is not None

    @property
    def peak(self) -> float:
        """The rate after the warmup."""
        if self.learning_rate is None:
            raise ValueError(f"The schedule {self.name} has no learning_rate yet; pass learning_rate=.")
        return self.learning_rate

    @property
    def floor(self) -> float:
        """The rate at the end."""
        return 0.1 * self.peak if self.min_lr is None else self.min_lr

    @property
    def plateau(self) -> float:
        """The rate of the constant phase of an infinite schedule."""
        return 0.55 * self.peak if self.constant_lr is None else self.constant_lr

    def resolve(self, *, total_steps: int, learning_rate: float, tokens_per_step: int | None = None) -> Self:
        """Return the schedule with its open fields filled in.

        Raises:
            ValueError: if it is longer than the stage.
        """
        if self.total_steps is not None and self.total_steps > total_steps:
            raise ValueError(
                f"The schedule {self.name} is {self.total_steps} steps long and the stage only {total_steps}; "
                "shorten the schedule or lengthen the stage."
            )
        return replace(
            self,
            # A schedule shorter than its stage stays at its last rate.
            total_steps=self.total_steps or total_steps,
            learning_rate=learning_rate if self.learning_rate is None else self.learning_rate,
            tokens_per_step=self.tokens_per_step or tokens_per_step,
        )

    def __call__(self, step: float) -> float:
        """Return the learning rate of the zero-based `step`, which need not be a whole number."""
        t = step + self.step_offset
        phases = {phase: self.steps(phase) for phase in PHASES[self.name]}
        if self.name == "constant":
            return rates.constant(t, peak=self.peak, **phases)
        bounds = {"total": self._total(), "peak": self.peak, "floor": self.floor}
        if self.name == "rewarm_cosine":
            return rates.rewarm_cosine(t, **bounds, **phases)
        if self.name == "wsd":
            return rates.wsd(t, **bounds, **phases, shape=self.cooldown_shape)
        if self.name == "infinite_cosine":
            return rates.infinite_cosine(t, **bounds, **phases, plateau=self.plateau)
        return rates.infinite_inv_sqrt(t, **bounds, **phases, plateau=self.plateau, timescale=self.timescale)

    def factor(self, step: float) -> float:
        """Return the learning rate of the zero-based `step` divided by the peak; 0 for a peak of 0."""
        return self(step) / self.peak if self.peak else 0.0

    def steps(self, phase: str) -> float:
        """Return the length of a phase (`"warmup"`, `"cooldown"`, `"constant"`) in steps, not rounded."""
        duration = self._phase(phase)
        if isinstance(duration, str):
            if self.tokens_per_step is None:
                raise ValueError(
                    f"{phase} is {duration!r}, and the tokens of a step are unknown; pass tokens_per_step."
                )
            return parse_tokens(duration) / self.tokens_per_step
        if isinstance(duration, float):
            return duration * self._total()
        return float(duration)

    def constant_phase(self) -> tuple[float, float] | None:
        """Return the numbers of steps t between which the rate is constant, or `None` if it never is."""
        if self.name == "rewarm_cosine":
            return None
        warmup = self.steps("warmup")
        if self.name == "constant":
            return warmup, math.inf
        if self.name == "wsd":
            return warmup, self._total() - self.steps("cooldown")
        start = warmup + self.steps("cooldown")
        return start, start + self.steps("constant")

    def _phase(self, phase: str) -> Duration:
        duration: Duration | None = getattr(self, phase)
        if duration is not None:
            return duration
        if phase == "constant":
            return 0.25
        # With the default warmup, an infinite schedule has the last 14 % of the stage for its anneal.
        return 0.2 if self.name == "wsd" else 0.6

    def _total(self) -> int:
        if self.total_steps is None:
            raise ValueError(f"The schedule {self.name} does not know its length yet; pass total_steps=.")
        return self.total_steps

    def _check_values(self) -> None:
        if not 0 <= self.floor <= self.peak:
            raise ValueError(f"min_lr is {self.floor}; it must lie between 0 and the peak, {self.peak}.")
        if self.name.startswith("infinite") and not self.floor < self.plateau <= self.peak:
            raise ValueError(
                f"constant_lr is {self.plateau}; it must lie above min_lr, {self.floor}, and not above the peak, "
                f"{self.peak}."
            )
        if self.name.startswith("infinite") and self.floor == 0:
            raise ValueError(f"min_lr is 0 and the anneal of {self.name} is exponential; give a positive min_lr.")
        if any(isinstance(self._phase(phase), str) for phase in PHASES[self.name]) and self.tokens_per_step is None:
            return
        length = sum(self.steps(phase) for phase in PHASES[self.name])
        # Fractions that sum to 1 on paper may exceed it by rounding.
        if length > self._total() * (1 + 1e-12):
            raise ValueError(
                f"The phases of the schedule {self.name} take {length:g} steps and the stage has {self._total()}; "
                "shorten a phase or lengthen the stage."
            )


def get_schedule(name: str, **parameters: float | int | str | None) -> Schedule:
    """Return a learning rate schedule: call it with the zero-based step, or call `.factor(step)`.

    Args:
        name (`str`): `rewarm_cosine`, `infinite_cosine`, `infinite_inv_sqrt`, `wsd` or `constant`.
        parameters: the fields of `Schedule`.

    Raises:
        ValueError: if a name, field or shape is unknown, the rates are out of order, or the phases are longer than
            `total_steps`.

    Example:

    ```python
    >>> schedule = get_schedule("infinite_cosine", total_steps=10_000, learning_rate=3e-4, constant_lr=1.65e-4,
    ...                         min_lr=3e-5, warmup=0.01, cooldown=0.6, constant=0.25)
    >>> f"{schedule(999):.10e}"
    '2.9264294038e-04'
    >>> round(schedule.factor(9_299), 6)
    0.234521

    ```
    """
    refuse_unknown("schedule", name, get_args(Name))
    known = [field.name for field in fields(Schedule)]
    for parameter in parameters:
        refuse_unknown(f"parameter of the schedule {name}", parameter, known)
    return Schedule(name=name, **parameters)  # type: ignore[arg-type]


def parse_tokens(text: str) -> float:
    """Return the number of tokens in a text such as `"250 tokens"`, `"2.5M tokens"` or `"1B tokens"`."""
    match = TOKENS.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number of tokens; write it as '2.5M tokens'.")
    return float(match.group(1)) * UNITS[match.group(2)]


def _check_duration(phase: str, duration: Duration) -> None:
    if isinstance(duration, str):
        parse_tokens(duration)
    elif duration < 0 or (isinstance(duration, float) and duration > 1):
        raise ValueError(
            f"{phase} is {duration}; give steps as a whole number, a fraction of the stage as a float up to 1.0, "
            "or tokens as '2.5M tokens'."
        )
