"""The spaces of merges: boxes of a few numbers, and the weights that each point of a box stands for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, log
from typing import Protocol

import torch

from hf_warmscale.architecture import Axis, Component, ModelMap, ParameterMap, describe
from hf_warmscale.merging.combine import CheckpointWeights
from hf_warmscale.merging.inputs import check_order
from hf_warmscale.merging.sources import CheckpointSource, MergeSource
from hf_warmscale.merging.weights import Weights, pair_weights, simplex_point, trajectory_weights, unit_point
from hf_warmscale.options import SPACES, SpaceName

Point = Mapping[str, float]


@dataclass(frozen=True)
class Range:
    """One side of the box: from `low` to `high`, on a logarithmic scale if `log`.

    Raises:
        ValueError: if it is empty.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high < inf:
            raise ValueError(
                f"A side of the space goes from {self.low} to {self.high}; the second must be the larger one."
            )

    def unit(self, value: float) -> float:
        """Map `low` ... `high` to 0 ... 1."""
        if self.log:
            return log(value / self.low) / log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def value(self, unit: float) -> float:
        """Map 0 ... 1 to `low` ... `high`."""
        if self.log:
            return self.low * exp(unit * log(self.high / self.low))
        return self.low + unit * (self.high - self.low)


class Space(Protocol):
    """A box whose points stand for merges; see `Combiner` for how their weights are applied.

    Example:

    ```python
    >>> space = TrajectorySpace(3)
    >>> list(space.ranges), space.point((0.0, 0.5, 0.5))
    (['window', 'exponent'], {'window': 2.0, 'exponent': 1.0})
    ```
    """

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The sides of the box, by parameter."""
        ...

    def weights(self, point: Point) -> CheckpointWeights:
        """Return the weights that a point stands for."""
        ...

    def point(self, weights: Weights) -> Point | None:
        """Return the point with these weights, or `None` if it is outside the box."""
        ...


@dataclass(frozen=True)
class PairSpace:
    """Two checkpoints: `lambda` is the weight of the later one (arXiv 2403.19390).

    Args:
        alpha (`float`): smallest weight of the later checkpoint.
        beyond (`float`): its largest weight; above 1 the search may extrapolate.

    Example:

    ```python
    >>> PairSpace().weights({"lambda": 0.75})
    (0.25, 0.75)
    ```
    """

    alpha: float = 0.5
    beyond: float = 1.0

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The sides of the box, by parameter."""
        return {"lambda": Range(self.alpha, self.beyond)}

    def weights(self, point: Point) -> Weights:
        """Return the weights that a point stands for."""
        return pair_weights(point["lambda"])

    def point(self, weights: Weights) -> Point | None:
        """Return the point with these weights, or `None` if it is outside the box."""
        # A single earlier checkpoint has weight 0 here and is outside the default box; the search scores it
        # separately.
        return {"lambda": weights[1]} if self.alpha <= weights[1] <= self.beyond else None


@dataclass(frozen=True)
class TrajectorySpace:
    """Any number of checkpoints by two numbers: the window and the exponent of the power family (arXiv 2507.17634).

    Args:
        count (`int`): number of checkpoints, the oldest first.

    Example:

    ```python
    >>> TrajectorySpace(4).weights({"window": 2.0, "exponent": 1.0})
    (0.0, 0.0, 0.5, 0.5)
    ```
    """

    count: int

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The sides of the box, by parameter."""
        # The exponent on a logarithmic scale: 1/2 and 2 are as far from the uniform average.
        return {"window": Range(1.0, float(self.count)), "exponent": Range(0.25, 4.0, log=True)}

    def weights(self, point: Point) -> Weights:
        """Return the weights that a point stands for."""
        return trajectory_weights(self.count, point["window"], point["exponent"])

    def point(self, weights: Weights) -> Point | None:
        """Return the point with these weights, or `None`: only averages of the latest checkpoints have one."""
        # With the exponent 1 an integer window is the uniform average of its checkpoints; no other average is in the
        # family.
        used = [weight for weight in weights if weight]
        if tuple(weights[-len(used) :]) == tuple(used) and max(used) - min(used) < 1e-9:
            return {"window": float(len(used)), "exponent": 1.0}
        return None


@dataclass(frozen=True)
class SimplexSpace:
    """All convex merges of a few checkpoints, by stick breaking that is uniform on the simplex.

    Args:
        count (`int`): number of checkpoints.

    Example:

    ```python
    >>> SimplexSpace(2).weights({"stick_0": 0.25})
    (0.25, 0.75)
    ```
    """

    count: int

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The sides of the box, by parameter."""
        return {f"stick_{index}": Range(0.0, 1.0) for index in range(self.count - 1)}

    def weights(self, point: Point) -> Weights:
        """Return the weights that a point stands for."""
        return simplex_point([point[name] for name in self.ranges])

    def point(self, weights: Weights) -> Point | None:
        """Return the point with these weights."""
        return dict(zip(self.ranges, unit_point(weights), strict=True))


@dataclass(frozen=True, eq=False)
class GroupSpace:
    """Convex merges that differ between parts of the network and along its depth.

    Every component (embedding, attention, mlp, norm, readout) has its own stick-breaking weights. Parameters in blocks
    have them at `knots` depths, spread evenly from the first block to the last, with linear interpolation in between;
    the others have those of their end of the model.

    Args:
        model_map (`ModelMap`): gives the component and the layer of every parameter.
        count (`int`): number of checkpoints.
        knots (`int`): the number of depths with their own weights, at least 1.

    Raises:
        ValueError: if there are no knots.

    Example:

    ```python
    >>> list(GroupSpace(describe(model.config), count=2).ranges)[:3]
    ['embedding.0.stick_0', 'attention.0.stick_0', 'attention.1.stick_0']
    ```
    """

    model_map: ModelMap
    count: int
    knots: int = 2

    def __post_init__(self) -> None:
        if self.knots < 1:
            raise ValueError(f"knots is {self.knots}; it must be at least 1.")

    def __repr__(self) -> str:
        return f"GroupSpace(count={self.count}, knots={self.knots})"

    @cached_property
    def ranges(self) -> Mapping[str, Range]:
        """The sides of the box, by parameter."""
        return {
            f"{component}.{knot}.stick_{stick}": Range(0.0, 1.0)
            for component, knots in self._knots.items()
            for knot in range(knots)
            for stick in range(self.count - 1)
        }

    def weights(self, point: Point) -> Mapping[str, Weights]:
        """Return the weights of every parameter, by name."""
        at_knots = {
            component: [
                simplex_point([point[f"{component}.{knot}.stick_{stick}"] for stick in range(self.count - 1)])
                for knot in range(knots)
            ]
            for component, knots in self._knots.items()
        }
        return {
            name: _interpolate(at_knots[parameter.component], self._depth(parameter))
            for name, parameter in self.model_map.parameters.items()
        }

    def point(self, weights: Weights) -> Point | None:
        """Return the point that gives these weights to every parameter."""
        # Interpolation between equal weights leaves them as they are, so all knots get the same sticks.
        sticks = unit_point(weights)
        return {name: sticks[int(name.rpartition("_")[2])] for name in self.ranges}

    @cached_property
    def _knots(self) -> Mapping[Component, int]:
        """The number of knots of each component: one if none of its parameters is in a block."""
        parameters = self.model_map.parameters.values()
        deep = {parameter.component for parameter in parameters if parameter.layer is not None}
        return {each.component: self.knots if each.component in deep else 1 for each in parameters}

    def _depth(self, parameter: ParameterMap) -> float:
        if parameter.layer is None:
            # Of a component that has no parameter in a block there is a single knot, and the depth is not looked at.
            return 0.0 if parameter.role == "embedding" else 1.0
        return parameter.layer / max(1, self.model_map.sizes[Axis.LAYERS] - 1)


@dataclass(frozen=True)
class AdapterSpace:
    """Low-rank adapters of one base, each with its own weight; the base is at the origin.

    Args:
        count (`int`): number of adapters.
        most (`float`): the largest weight of an adapter.

    Example:

    ```python
    >>> AdapterSpace(2).weights({"adapter_0": 1.0, "adapter_1": 0.5})
    (1.0, 0.5)
    ```
    """

    count: int
    most: float = 1.0

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The sides of the box, by parameter."""
        return {f"adapter_{index}": Range(0.0, self.most) for index in range(self.count)}

    def weights(self, point: Point) -> Weights:
        """Return the weights that a point stands for."""
        return tuple(point[name] for name in self.ranges)

    def point(self, weights: Weights) -> Point | None:
        """Return the point with these weights, or `None` if it is outside the box."""
        return dict(zip(self.ranges, weights, strict=True)) if max(weights) <= self.most else None


def _interpolate(knots: list[Weights], depth: float) -> Weights:
    position = depth * (len(knots) - 1)
    below = min(int(position), len(knots) - 1)
    # At the last knot there is nothing above; its share is 0.
    above = min(below + 1, len(knots) - 1)
    share = position - below
    return tuple((1 - share) * a + share * b for a, b in zip(knots[below], knots[above], strict=True))


def open_source(
    checkpoints: Sequence[str | os.PathLike[str]], space: SpaceName | Space, device: torch.device
) -> MergeSource:
    """Open the checkpoints, or adapters, that a space combines.

    Args:
        checkpoints (`Sequence[str | PathLike]`): checkpoints, or adapters.
        space (`str` or `Space`): the space or its name.
        device (`torch.device`): of the live model.

    Raises:
        ValueError: if they do not belong together, or are not in the order or of the number that the space needs.
        FileNotFoundError: if one does not exist.
    """
    if isinstance(space, str) and space not in SPACES:
        raise ValueError(f"The space {space!r} is unknown; choose one of {', '.join(SPACES)}.")
    if space == "lora" or isinstance(space, AdapterSpace):
        from hf_warmscale.merging.lora import AdapterSource  # peft takes seconds to import

        return AdapterSource(checkpoints, device)
    source = CheckpointSource(checkpoints, device)
    if space in ("pair", "trajectory") or isinstance(space, PairSpace | TrajectorySpace):
        check_order(source.checkpoints)
    if (space == "pair" or isinstance(space, PairSpace)) and len(source) != 2:
        raise ValueError(f"The space 'pair' merges two checkpoints, not {len(source)}; use 'trajectory' or 'simplex'.")
    return source


def make_space(space: SpaceName | Space, source: MergeSource) -> Space:
    """Return the space with this name for the models of `source`; a `Space` is returned as it is.

    Raises:
        ValueError: if a space was made for another number of models.
    """
    count = len(source)
    if not isinstance(space, str):
        # A space need not have a `count`; the weights of any of its points tell for how many models it was made.
        weights = space.weights({name: side.low for name, side in space.ranges.items()})
        made_for = len(next(iter(weights.values())) if isinstance(weights, Mapping) else weights)
        if made_for != count:
            raise ValueError(f"{space!r} gives {made_for} weights for {count} checkpoints; make it for {count}.")
        return space
    if space == "pair":
        return PairSpace()
    if space == "trajectory":
        return TrajectorySpace(count)
    if space == "simplex":
        return SimplexSpace(count)
    if space == "groups":
        return GroupSpace(describe(source.model.config), count)
    return AdapterSpace(count)
