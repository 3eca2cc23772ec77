"""The width operators: what each says about an axis and about new coordinates. All else they share (`plan.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from hf_warmscale.architecture import Axis, ModelMap, NormMap, ParameterMap, Role
from hf_warmscale.options import WidthName
from hf_warmscale.resize.planning.axis_map import Extend, pad, sample, tile
from hf_warmscale.resize.planning.transfer import Fill, Noise, generator

MATRICES: tuple[Role, ...] = ("embedding", "hidden", "readout", "router")
"""What `szp` shrinks and perturbs; vectors keep their values."""


class WidthOperator(Protocol):
    """How a width grows.

    Attributes:
        name (`str`): as the user writes it.
        keeps_logits (`bool`): it means to leave the logits as they are, so that changed factors are compensated.
        divides (`bool`): new coordinates are copies, and what sums over them is divided by their number.
    """

    name: ClassVar[WidthName]
    keeps_logits: ClassVar[bool]
    divides: ClassVar[bool]

    def extend(self, axis: Axis) -> Extend:
        """Return the rule for the map of one axis."""
        ...

    def scale(self, parameter: ParameterMap) -> float:
        """Return a factor on what is copied of a parameter of the source."""
        ...

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        """Return what the new coordinates of a dimension hold, of a parameter of the source."""
        ...

    def noise(self, parameter: ParameterMap) -> Noise | None:
        """Return the noise on what is copied to a parameter of the target."""
        ...


@dataclass(frozen=True)
class Clone:
    """Copy coordinate i to every i + k * d and divide what sums over copies (HyperCloning, arXiv:2409.12903).

    Args:
        snr_db (`float` or `None`): signal-to-noise ratio, in dB, of the noise that parts copies; `None` for none.
    """

    snr_db: float | None = 10.0
    name: ClassVar[WidthName] = "clone"
    keeps_logits: ClassVar[bool] = True
    divides: ClassVar[bool] = True

    def extend(self, axis: Axis) -> Extend:
        return tile

    def scale(self, parameter: ParameterMap) -> float:
        return 1.0

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        return "zero"

    def noise(self, parameter: ParameterMap) -> Noise | None:
        if self.snr_db is None or parameter.fan_in is None:
            return None
        return Noise(10 ** (-self.snr_db / 20), relative=True, paired=True)


@dataclass(frozen=True)
class Net2Net:
    """Copy random coordinates and divide what sums over copies by their number (Net2Net, arXiv:1511.05641).

    Exact on heads and neurons. Not on the hidden size, where a norm counts a coordinate as often as it was drawn.
    """

    seed: int = 0
    name: ClassVar[WidthName] = "net2net"
    keeps_logits: ClassVar[bool] = True
    divides: ClassVar[bool] = True

    def extend(self, axis: Axis) -> Extend:
        random = generator(f"{self.seed}:{axis}")
        return lambda source, target: sample(source, target, random)

    def scale(self, parameter: ParameterMap) -> float:
        return 1.0

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        return "zero"

    def noise(self, parameter: ParameterMap) -> Noise | None:
        return None


@dataclass(frozen=True)
class ZeroPad:
    """Put new coordinates behind the old ones and keep every logit (arXiv:2308.06103, but with every eps left alone).

    With r = sqrt(D/d), what writes to the residual stream is multiplied by r and the gains that read it by 1/r: the
    norms see the mean square that they saw. What is written to a new hidden coordinate is 0, or under LayerNorm the
    mean over the others, which the norm sends to 0; what reads it is random. A new head or neuron writes at random and
    is read by 0, so that it learns at once.

    Args:
        source (`ModelMap`): the source.
        sizes (`Mapping[Axis, int]`): the sizes of the target.
    """

    source: ModelMap
    sizes: Mapping[Axis, int]
    name: ClassVar[WidthName] = "zero_pad"
    keeps_logits: ClassVar[bool] = True
    divides: ClassVar[bool] = False

    def extend(self, axis: Axis) -> Extend:
        return pad

    def scale(self, parameter: ParameterMap) -> float:
        norm = self.source.norms.get(parameter.module)
        if norm is not None:
            rescaled = parameter.role != "bias" and norm.position != "post"
            return self._ratio(parameter) ** -0.5 if rescaled else 1.0
        factor = 1.0
        if parameter.writes(Axis.HIDDEN) or self._inner_norm(parameter) is not None:
            factor *= self._ratio(parameter) ** 0.5
        if parameter.reads(Axis.HIDDEN) and self._reads_raw_stream(parameter):
            factor /= (self.sizes[Axis.HIDDEN] / self.source.sizes[Axis.HIDDEN]) ** 0.5
        return factor

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        if parameter.module in self.source.norms:
            return "zero" if parameter.role == "bias" else "mean"
        if dim == parameter.fan_in:
            return "random" if parameter.reads(Axis.HIDDEN) else "zero"
        if parameter.writes(Axis.HIDDEN):
            return "mean" if self._stream_is_centered() else "zero"
        inner = self._inner_norm(parameter)
        if inner is not None:
            return "mean" if inner.centered else "zero"
        return "zero" if parameter.role == "bias" else "random"

    def noise(self, parameter: ParameterMap) -> Noise | None:
        return None

    def _ratio(self, parameter: ParameterMap) -> float:
        """Return the growth of the dimension along which a parameter writes."""
        assert parameter.fan_out is not None
        dimension = parameter.dimensions[parameter.fan_out]
        return sum(block.size(self.sizes) for block in dimension) / sum(
            block.size(self.source.sizes) for block in dimension
        )

    def _stream_is_centered(self) -> bool:
        return any(norm.centered for norm in self.source.norms.values() if norm.position in ("pre", "final"))

    def _reads_raw_stream(self, parameter: ParameterMap) -> bool:
        return parameter.layer is not None and not any(
            norm.position == "pre" for norm in self.source.norms.values() if norm.layer == parameter.layer
        )

    def _inner_norm(self, parameter: ParameterMap) -> NormMap | None:
        """Return the norm over all heads (OLMo-2's `q_norm`) that follows a projection (`q_proj`), found by name."""
        path, _, name = parameter.module.rpartition(".")
        norm = self.source.norms.get(f"{path}.{name.partition('_')[0]}_norm")
        if norm is None or norm.position != "inner" or parameter.fan_out is None:
            return None
        gain = self.source.parameters[f"{norm.module}.weight"]
        return norm if gain.dimensions[0] == parameter.dimensions[parameter.fan_out] else None


@dataclass(frozen=True)
class ShrinkZeroPadPerturb:
    """Shrink what was learnt, pad it with zeros, add the muP init of the target (arXiv:2411.07340, arXiv:2605.13405).

    `W = shrink * pad(W_source) + M` for matrices. Vectors keep their values; a new gain is 1, a new bias 0.

    Args:
        source (`ModelMap`): the source.
        init_std (`Mapping[str, float]`): the standard deviation of M for each matrix of the target.
        shrink (`float`): lambda.
    """

    source: ModelMap
    init_std: Mapping[str, float] = field(repr=False)
    shrink: float = 0.4
    name: ClassVar[WidthName] = "szp"
    keeps_logits: ClassVar[bool] = False
    divides: ClassVar[bool] = False

    def extend(self, axis: Axis) -> Extend:
        return pad

    def scale(self, parameter: ParameterMap) -> float:
        return self.shrink if parameter.role in MATRICES else 1.0

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        return "one" if parameter.module in self.source.norms and parameter.role != "bias" else "zero"

    def noise(self, parameter: ParameterMap) -> Noise | None:
        std = self.init_std.get(parameter.name, 0.0)
        return Noise(std) if std else None
