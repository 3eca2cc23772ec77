"""muP in any family's own forward pass: the multipliers are folded into init, learning rate, eps and weight decay.

Adam does not see a factor that moves from the forward pass into a weight ([`OptimizerFactors.absorb`]), so the model
needs no multipliers of its own. The embedding takes its multiplier; an untied readout takes 1/m_N; with tied weights,
the final norm's gain takes 1/m_N instead. A matrix that writes to the residual stream takes m_L^-alpha, unless a norm
follows it: then that norm's gain does.
"""

from dataclasses import dataclass

from hf_warmscale.architecture import Axis, ModelMap, ParameterMap
from hf_warmscale.mup.parameter_scaling import ParameterScaling
from hf_warmscale.mup.rules import Parametrization, Ratios

MULTIPLIERS = (
    "_multiplier",
    "_multipliers",
    "logits_scaling",
    "logit_scale",
    "dim_model_base",
    "scale_depth",
    "scale_emb",
)
"""How the config fields end with which families scale their own forward pass."""


def folded_scalings(model: ModelMap, base: ModelMap, parametrization: Parametrization) -> dict[str, ParameterScaling]:
    """Return the scaling of every parameter of a model, in the model's own order.

    Args:
        model (`ModelMap`): the model to train.
        base (`ModelMap`): the model of the same family that was tuned.
        parametrization (`Parametrization`): the rules and the tuned constants.

    Raises:
        ValueError: if the base is of another family, is wider, or has heads of another size or other multipliers; if
            the readout or, for a model of another depth, the residual branches cannot be identified; or if an option
            does not exist for the family.
    """
    _refuse_base(model, base)
    multipliers = _Multipliers(model, base, parametrization)
    zero = _zero_names(model, parametrization)
    return {
        parameter.name: ParameterScaling(
            parameter.role,
            _ratios(parameter, model, base),
            multipliers.of(parameter),
            in_block=parameter.layer is not None,
            zero_init=parameter.name in zero,
        )
        for parameter in model.parameters.values()
        if parameter.role != "buffer"
    }


class _Multipliers:
    """The factor that each parameter takes over from the forward pass."""

    def __init__(self, model: ModelMap, base: ModelMap, parametrization: Parametrization) -> None:
        whole = Ratios(width=_width(model, base), depth=model.sizes[Axis.LAYERS] / base.sizes[Axis.LAYERS])
        seen = whole.seen_by(parametrization.rule)
        native = _native_factors(model, base, seen)
        # What the family's own forward pass does already must not be done twice: MiniCPM divides its branches by
        # sqrt(layers), which is m_L^-1/2 of m_L^-alpha.
        self.residual = parametrization.residual_multiplier(whole.depth) / native.residual
        self.lookup = parametrization.multiplier("embedding", whole)
        # A family that multiplies the embedding by sqrt(hidden) has made it sqrt(m_N) times the base's.
        scaled = seen.width**0.5 if model.embedding_scale == "sqrt" else 1.0
        self.embedding = self.lookup / scaled
        self.readout = parametrization.multiplier("readout", whole) / native.readout
        self.tied = not model.with_role("readout")
        self.final = {module for module, norm in model.norms.items() if norm.position == "final"}
        self.post = {module for module, norm in model.norms.items() if norm.position == "post"}
        self.writers = _residual_writers(model)
        if self.tied:
            _refuse_tied(model)
        if self.residual != 1:
            _refuse_residual(model, self.writers)

    def of(self, parameter: ParameterMap) -> float:
        if parameter.role == "embedding":
            # Position tables have the same role, but no family scales them by sqrt(hidden).
            return self.embedding if Axis.VOCAB in parameter.axes() else self.lookup
        if parameter.role == "readout":
            return self.readout
        if parameter.module in self.final:
            # logits = E norm_f(h): the tied E holds the embedding's factor already, so the gain divides by it.
            return self.readout / self.embedding if self.tied else 1.0
        if self.post:
            # The post-norm divides by the scale of what it gets, so a factor in the matrix before it would be lost;
            # only the gain behind it sets the size of the branch.
            return self.residual if parameter.module in self.post else 1.0
        # Weights and biases alike: `writes` holds for the bias of a writing matrix, which must shrink with it.
        return self.residual if parameter.module in self.writers and parameter.writes(Axis.HIDDEN) else 1.0


@dataclass(frozen=True)
class _Native:
    """What a family's own forward pass multiplies, relative to the base, by sizes that its config names."""

    readout: float = 1.0
    residual: float = 1.0


def _native_factors(model: ModelMap, base: ModelMap, ratios: Ratios) -> _Native:
    """Return the factors of MiniCPM's kind; refuse multipliers that the base has otherwise."""
    config, other = model.proved_on.to_dict(), base.proved_on.to_dict()
    for name, value in config.items():
        # At the base shape, and under `standard`, nothing is scaled, and the family's fields may have any values.
        if ratios != Ratios() and name.endswith(MULTIPLIERS) and value != other.get(name):
            raise ValueError(
                f"The base's {name} is {other.get(name)}, the model's {value}; muP's factors come on top of the "
                "family's own, so give both the same."
            )
    return _Native(
        readout=1 / ratios.width if "dim_model_base" in config else 1.0,  # logits / (hidden / dim_model_base)
        residual=ratios.depth**-0.5 if "scale_depth" in config else 1.0,  # branches * scale_depth / sqrt(layers)
    )


def _ratios(parameter: ParameterMap, model: ModelMap, base: ModelMap) -> Ratios:
    def ratio(dimension: int | None) -> float:
        if dimension is None:
            return 1.0
        return parameter.shape(model.sizes)[dimension] / parameter.shape(base.sizes)[dimension]

    return Ratios(
        width=_width(model, base),
        depth=1.0 if parameter.layer is None else model.sizes[Axis.LAYERS] / base.sizes[Axis.LAYERS],
        fan_in=ratio(parameter.fan_in),
        fan_out=ratio(parameter.fan_out),
    )


def _width(model: ModelMap, base: ModelMap) -> float:
    return model.sizes[Axis.HIDDEN] / base.sizes[Axis.HIDDEN]


def _residual_writers(model: ModelMap) -> set[str]:
    """The modules inside the blocks whose output joins the residual stream."""
    matrices = [parameter for parameter in model.with_role("hidden") if parameter.layer is not None]
    return {parameter.module for parameter in matrices if parameter.writes(Axis.HIDDEN)}


def _refuse_base(model: ModelMap, base: ModelMap) -> None:
    if base.model_type != model.model_type:
        raise ValueError(
            f"The base config is of the family {base.model_type}, the model of {model.model_type}; take a smaller "
            f"{model.model_type} as the base."
        )
    for axis in (Axis.HIDDEN, Axis.INTERMEDIATE, Axis.HEADS):
        if base.sizes.get(axis, 0) > model.sizes.get(axis, 0):
            raise ValueError(
                f"The base's {axis} is {base.sizes[axis]}, wider than the model's {model.sizes[axis]}; muP scales up, "
                "so take a base that is at most as wide."
            )
    # The usual head_dim^-1/2 is muP's scale only while heads keep their size; growing heads would need 1/head_dim.
    if base.sizes.get(Axis.HEAD_DIM) != model.sizes.get(Axis.HEAD_DIM):
        raise ValueError(
            f"The base has a head_dim of {base.sizes.get(Axis.HEAD_DIM)}, the model of "
            f"{model.sizes.get(Axis.HEAD_DIM)}; let the number of heads grow instead."
        )


def _refuse_tied(model: ModelMap) -> None:
    shared = set(model.tied.values())
    if not any(parameter.name in shared for parameter in model.with_role("embedding")):
        raise ValueError(f"The readout of {model.model_type} cannot be identified; muP cannot scale its logits.")
    if not model.with_role("final_norm"):
        raise ValueError(
            f"{model.model_type} ties its readout and has no gain in front of it to take the factor 1/m_N; set "
            "tie_word_embeddings=False."
        )


def _refuse_residual(model: ModelMap, writers: set[str]) -> None:
    # A matrix [hidden, hidden] in a block may write to the stream or only inside its branch; the shape does not tell.
    ambiguous = [
        parameter.name
        for parameter in model.with_role("hidden")
        if parameter.layer is not None and parameter.reads(Axis.HIDDEN) and parameter.writes(Axis.HIDDEN)
    ]
    per_block = {norm.module for norm in model.norms.values() if norm.position == "post" and norm.layer == 0}
    branches = {p.component for p in model.parameters.values() if p.module in writers and p.layer == 0}
    after_the_sum = any(norm.position == "residual" for norm in model.norms.values())
    if ambiguous or after_the_sum or len(per_block) not in (0, len(branches)):
        raise ValueError(
            f"The residual branches of {model.model_type} cannot be identified, so the depth rule cannot be applied; "
            "take a base of the same depth, or the rule 'mup'."
        )


def _zero_names(described: ModelMap, parametrization: Parametrization) -> set[str]:
    """The parameters that start at 0 by option."""
    names: set[str] = set()
    if parametrization.zero_init_readout:
        readout = described.with_role("readout")
        if not readout:
            raise ValueError("muP's zero_init_readout needs an untied readout; set tie_word_embeddings=False.")
        names |= {parameter.name for parameter in readout}
    if parametrization.zero_init_query:
        query = [place for place in described.with_role("hidden") if _is_query(place)]
        if len(query) != described.sizes[Axis.LAYERS]:
            raise ValueError(
                f"The query projections of {described.model_type} are not matrices of their own; drop zero_init_query."
            )
        names |= {parameter.name for parameter in query}
    return names


def _is_query(place: ParameterMap) -> bool:
    return (
        place.reads(Axis.HIDDEN)
        and place.writes(Axis.HEADS)
        and place.fan_out is not None
        and [block.factors for block in place.dimensions[place.fan_out]] == [(Axis.HEADS, Axis.HEAD_DIM)]
    )
