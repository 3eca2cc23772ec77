"""The rule table of one model: every group of parameters, its factors, the formulas behind them and the reason."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from hf_warmscale.architecture import Role
from hf_warmscale.mup.parameter_scaling import ParameterScaling
from hf_warmscale.mup.realization import Realization, realize
from hf_warmscale.mup.rules import Parametrization, Power, rule_table

ALPHAS: Mapping[Role, str] = {"embedding": "α_in", "readout": "α_out"}
VECTORS = ("norm", "final_norm", "bias")


@dataclass(frozen=True)
class Cell:
    """A factor, and the formula it comes from: σ, η, λ and ε are the base's init std, rate, weight decay and eps.

    Args:
        formula (`str`): in the symbols of the table.
        value (`float`): its value for the model at hand.

    Example:

    ```python
    >>> print(Cell("η/m_in", 0.25))
    η/m_in = 0.25
    ```
    """

    formula: str
    value: float

    def __str__(self) -> str:
        return self.formula if len(self.formula) == 1 else f"{self.formula} = {self.value:.4g}"


ZERO = Cell("0", 0.0)


@dataclass(frozen=True)
class TableRow:
    """What one group of parameters, or one part of the forward pass, is multiplied by.

    Args:
        role (`str`): the role, or the part of the forward pass.
        place (`str`): `"block"`, `"outside"` or `"forward"`.
        parameters (`int`): how many tensors the row stands for.
        example (`str`): the first of them, or the config field.
        init (`Cell` or `None`): on the init std; on the initial value for gains; 0 for biases.
        multiplier (`Cell` or `None`): in the forward pass.
        lr (`Cell` or `None`): on the learning rate, under AdamW.
        weight_decay (`Cell` or `None`): on the decoupled weight decay, under AdamW.
        eps (`Cell` or `None`): on Adam's eps.
        muon_lr (`Cell` or `None`): on the learning rate under Muon; `None` where Muon must not be used.
        muon_weight_decay (`Cell` or `None`): on the decoupled weight decay under Muon.
        muon_eps (`Cell` or `None`): on the eps under Muon.
        reason (`str`): why.

    Example:

    ```python
    >>> row = mup_table(config)[0]
    >>> row.role, row.place, row.lr.formula
    ('embedding', 'outside', 'η')
    ```
    """

    role: str
    place: str
    parameters: int
    example: str
    init: Cell | None
    multiplier: Cell | None
    lr: Cell | None
    weight_decay: Cell | None
    eps: Cell | None
    muon_lr: Cell | None
    muon_weight_decay: Cell | None
    muon_eps: Cell | None
    reason: str

    def cells(self) -> dict[str, object]:
        """Return the row as text, for printing."""
        return {
            "role": f"{self.role} ({self.place})",
            "tensors": self.parameters or None,
            "init": self.init,
            "forward": self.multiplier,
            "lr": self.lr,
            "weight decay": self.weight_decay,
            "eps": self.eps,
            "lr (Muon)": self.muon_lr,
            "weight decay (Muon)": self.muon_weight_decay,
            "eps (Muon)": self.muon_eps,
            "reason": self.reason,
        }


def mup_table(
    config: PreTrainedConfig,
    *,
    base_config: PreTrainedConfig | None = None,
    parametrization: Parametrization | None = None,
) -> list[TableRow]:
    """Return the rule table of a model, one row for each distinct group of parameters.

    Args:
        config (`PreTrainedConfig`): a [`MupConfig`], or with `base_config` the config of any causal LM.
        base_config (`PreTrainedConfig`, *optional*): the model that was tuned, of the same family.
        parametrization (`Parametrization`, *optional*): with `base_config`; by default CompleteP.

    Raises:
        ValueError: if the base is missing or does not fit.

    Example:

    ```python
    >>> for row in mup_table(config):
    ...     print(row.role, row.place, row.lr, row.reason)
    ```
    """
    realization = realize(config, base_config, parametrization)
    return [*_parameter_rows(realization), *_forward_rows(realization)]


def _parameter_rows(realization: Realization) -> list[TableRow]:
    members: dict[ParameterScaling, list[str]] = {}
    for name, scaling in realization.scalings.items():
        members.setdefault(scaling, []).append(name)
    order = list(rule_table())
    scalings = sorted(members, key=lambda scaling: (order.index(scaling.role), not scaling.in_block))
    return [_row(realization, scaling, members[scaling]) for scaling in scalings]


def _row(realization: Realization, scaling: ParameterScaling, names: list[str]) -> TableRow:
    parametrization = realization.parametrization
    rule = rule_table(parametrization.depth_alpha)[scaling.role]
    adamw = scaling.factors(parametrization)
    muon = parametrization.muon_factors(scaling.role, scaling.ratios).absorb(scaling.absorbed)
    moved = f"{scaling.absorbed:.4g}"

    def cell(symbol: str, power: Power, value: float, sign: str) -> Cell:
        # The values know by their ratios (m_L = 1) that depth does not reach this parameter; the formula must be told.
        seen = power if scaling.in_block else replace(power, depth=0)
        formula = seen.formula(symbol, parametrization.rule)
        return Cell(formula if scaling.absorbed == 1 else f"{formula}{sign}{moved}", value)

    return TableRow(
        role=scaling.role,
        place="block" if scaling.in_block else "outside",
        parameters=len(names),
        example=names[0],
        init=ZERO
        if scaling.role == "bias" or scaling.zero_init
        else cell("1" if scaling.role in VECTORS else "σ", rule.init, adamw.init, "·"),
        multiplier=_multiplier(realization, scaling),
        lr=cell("η", rule.lr, adamw.lr, "·"),
        weight_decay=cell("λ", rule.weight_decay, adamw.weight_decay, "/") if rule.weight_decay else ZERO,
        eps=cell("ε", rule.eps, adamw.eps, "/"),
        muon_lr=cell("η", rule.muon_lr, muon.lr, "·") if rule.muon_lr else None,
        muon_weight_decay=cell("λ", rule.muon_weight_decay, muon.weight_decay, "/")
        if rule.muon_weight_decay
        else None,
        muon_eps=cell("ε", rule.muon_eps, muon.eps, "/") if rule.muon_eps else None,
        reason=rule.reason if scaling.absorbed == 1 else f"{rule.reason}; holds {moved} for the forward pass",
    )


def _multiplier(realization: Realization, scaling: ParameterScaling) -> Cell | None:
    """The forward multiplier of an embedding or readout, where the forward pass has one."""
    if not realization.forward or scaling.role not in ALPHAS:
        return None
    power = rule_table()[scaling.role].multiplier
    formula = power.formula(ALPHAS[scaling.role], realization.parametrization.rule)
    return Cell(formula, realization.parametrization.multiplier(scaling.role, scaling.ratios))


def _forward_rows(realization: Realization) -> list[TableRow]:
    if not realization.forward:
        return []
    alpha = Power(depth=-realization.parametrization.depth_alpha)
    rows = {
        "residual branch": (
            "residual_multiplier",
            alpha.formula("1", realization.parametrization.rule),
            "the sum over the blocks keeps its size, and each block its share of it, at any depth",
        ),
        "attention scores": (
            "attention_multiplier",
            "head_dim^-0.5",
            "heads keep their size and only their number grows, so the usual scale is muP's too",
        ),
    }
    return [
        TableRow(
            role=role,
            place="forward",
            parameters=0,
            example=field,
            init=None,
            multiplier=Cell(formula, realization.forward[field]),
            lr=None,
            weight_decay=None,
            eps=None,
            muon_lr=None,
            muon_weight_decay=None,
            muon_eps=None,
            reason=reason,
        )
        for role, (field, formula, reason) in rows.items()
    ]
