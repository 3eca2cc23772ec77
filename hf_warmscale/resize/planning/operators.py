"""The width operators: the rules of each for an axis and for new coordinates. What they share is in `plan.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from hf_warmscale.architecture import Axis, ModelMap, NormMap, ParameterMap
from hf_warmscale.keyed_random import keyed_generator
from hf_warmscale.options import WidthName
from hf_warmscale.resize.planning.axis_map import Extend, pad, sample, tile
from hf_warmscale.resize.planning.init_std import MATRICES
from hf_warmscale.resize.planning.transfer import Fill, Noise


@dataclass(frozen=True)
class Clone:
    """Copy coordinate i to every i + k * d and divide what sums over copies (HyperCloning, arXiv:2409.12903).

    Args:
        snr_db (`float` or `None`): the signal-to-noise ratio, in dB, of the noise that makes copies differ; `None` for
            no noise. Copies without noise get equal gradients and never differ.
    """

    snr_db: float | None = 10.0
    name: ClassVar[WidthName] = "clone"
    keeps_logits: ClassVar[bool] = True
    divides: ClassVar[bool] = True
    rescales_stream: ClassVar[bool] = False

    def extend(self, axis: Axis) -> Extend:
        return tile

    def scale(self, parameter: ParameterMap) -> float:
        return 1.0

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        return "zero"

    def noise(self, parameter: ParameterMap) -> Noise | None:
        # Noise of +e and -e cancels only where the forward pass sums over the copies: not in embeddings and vectors.
        if self.snr_db is None or parameter.fan_in is None:
            return None
        # SNR in dB is 10 log10(rms^2 / std^2), a ratio of powers, hence 20 and not 10 for std / rms.
        return Noise(10 ** (-self.snr_db / 20), relative=True, paired=True)


@dataclass(frozen=True)
class Net2Net:
    """Copy random coordinates and divide what sums over copies by their number (Net2Net, arXiv:1511.05641).

    Exact for heads and neurons, but not for the hidden size: a norm counts a coordinate as often as it was drawn.
    """

    seed: int = 0
    name: ClassVar[WidthName] = "net2net"
    keeps_logits: ClassVar[bool] = True
    divides: ClassVar[bool] = True
    rescales_stream: ClassVar[bool] = False

    def extend(self, axis: Axis) -> Extend:
        # One stream per axis, so that the map of an axis does not depend on which other axes grow.
        random = keyed_generator(f"{self.seed}:{axis}")
        return lambda source, target: sample(source, target, random)

    def scale(self, parameter: ParameterMap) -> float:
        return 1.0

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        return "zero"

    def noise(self, parameter: ParameterMap) -> Noise | None:
        return None


@dataclass(frozen=True)
class ZeroPad:
    """Append new coordinates and keep every logit (arXiv:2308.06103, but without changing any eps).

    Let r = sqrt(D / d) for a hidden size that grows from d to D. Weights that write to the residual stream are
    multiplied by r, and the gains of the norms that read it by 1 / r, so each norm sees the mean square that it saw
    before. New hidden coordinates are written as 0, or under LayerNorm as the mean of the others, which the norm maps
    to 0; the weights that read them are random. New heads and neurons have random inputs and zero outputs, so their
    output weights get a gradient in the first step.

    Args:
        source (`ModelMap`): the source.
        sizes (`Mapping[Axis, int]`): the sizes of the target.
    """

    source: ModelMap
    sizes: Mapping[Axis, int]
    name: ClassVar[WidthName] = "zero_pad"
    keeps_logits: ClassVar[bool] = True
    divides: ClassVar[bool] = False
    rescales_stream: ClassVar[bool] = True

    def extend(self, axis: Axis) -> Extend:
        return pad

    def scale(self, parameter: ParameterMap) -> float:
        norm = self.source.norms.get(parameter.module)
        if norm is not None:
            # A norm after a sublayer sees a rescaled projection and must pass the factor on to the stream.
            rescaled = parameter.role != "bias" and norm.position != "post"
            return self._ratio(parameter) ** -0.5 if rescaled else 1.0
        factor = 1.0
        if parameter.name in self.source.stream_gains:
            return factor  # it multiplies the stream, and adds nothing to it
        # A norm over all heads (OLMo-2) is treated like one on the stream: sqrt(ratio) on the projection, its inverse
        # on the gain, so the mean square, and with it the weight of eps, stays what it was.
        if parameter.writes(Axis.HIDDEN) or self._inner_norm(parameter) is not None:
            factor *= self._ratio(parameter) ** 0.5
        if parameter.reads(Axis.HIDDEN) and self._reads_raw_stream(parameter):
            factor /= (self.sizes[Axis.HIDDEN] / self.source.sizes[Axis.HIDDEN]) ** 0.5
        return factor

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        if parameter.module in self.source.norms:
            # A gain of 0 on a stream that is 0 would never get a gradient, and neither would that stream.
            return "zero" if parameter.role == "bias" else "mean"
        if dim == parameter.fan_in:
            return "random" if parameter.reads(Axis.HIDDEN) else "zero"
        if parameter.name in self.source.stream_gains:
            return "one"  # a gain of 0 would cut the new coordinates off from the blocks before
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
        # OLMo-2 has post norms alone: its projections read the stream with its factor r. The readout is never raw, for
        # it stands behind the final norm.
        return parameter.layer is not None and not any(
            norm.position == "pre" for norm in self.source.norms.values() if norm.layer == parameter.layer
        )

    def _inner_norm(self, parameter: ParameterMap) -> NormMap | None:
        """Return the norm over all heads that follows a projection, by name: OLMo-2's `q_norm` after `q_proj`."""
        path, _, name = parameter.module.rpartition(".")
        norm = self.source.norms.get(f"{path}.{name.partition('_')[0]}_norm")
        if norm is None or norm.position != "inner" or parameter.fan_out is None:
            return None
        gain = self.source.parameters[f"{norm.module}.weight"]
        return norm if gain.dimensions[0] == parameter.dimensions[parameter.fan_out] else None


@dataclass(frozen=True)
class ShrinkZeroPadPerturb:
    """Shrink, zero-pad and perturb (`szp`, arXiv:2411.07340, arXiv:2605.13405).

    `W = shrink * pad(W_source) + M` for matrices, with M drawn like the muP init of the target. Vectors keep their
    values; new gains are 1 and new biases 0.

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
    rescales_stream: ClassVar[bool] = False

    def extend(self, axis: Axis) -> Extend:
        return pad

    def scale(self, parameter: ParameterMap) -> float:
        return self.shrink if parameter.role in MATRICES else 1.0

    def fill(self, parameter: ParameterMap, dim: int) -> Fill:
        gain = parameter.module in self.source.norms and parameter.role != "bias"
        return "one" if gain or parameter.name in self.source.stream_gains else "zero"

    def noise(self, parameter: ParameterMap) -> Noise | None:
        # Vectors are not in the table: their values stay.
        std = self.init_std.get(parameter.name, 0.0)
        return Noise(std) if std else None
