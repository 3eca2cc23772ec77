"""The rule table of muP and CompleteP: what each role's init, forward, learning rate, decay and eps depend on.

Every rule is a monomial in four ratios of the model to the base model it was tuned at. One table serves all three
parametrizations, because they differ only in which ratios they see: `standard` sees none, `mup` the widths,
`completep` the widths and the depth.

Sources: Table 8 of arXiv:2203.03466 (width), Table 1 of arXiv:2505.01618 (depth, eps, weight decay),
arXiv:2310.17813 (spectral condition, the Muon columns).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hf_warmscale.architecture.model_map import Role
from hf_warmscale.options import RULES, RuleName


@dataclass(frozen=True)
class Ratios:
    """The sizes of one parameter, and of the model that holds it, relative to the base model.

    Args:
        width (`float`): m_N, the ratio of the hidden sizes.
        depth (`float`): m_L, the ratio of the numbers of layers; 1 for what is outside the blocks.
        fan_in (`float`): the ratio of what the parameter sums over; m_N if all widths grow together.
        fan_out (`float`): the ratio of what it writes; m_N if all widths grow together.

    Widths that grow out of proportion keep the step of each matrix, but not what Adam's step of one matrix does
    through the next: for the MLP that part goes as (m_f / m_N)^0.5, m_f being the ratio of the intermediate sizes.
    Keep the proportions of the base; `recipes/reproduce/mup/README.md` has the derivation and the slopes.

    Example:

    ```python
    >>> Ratios(width=4.0, depth=2.0, fan_in=4.0).seen_by("mup")
    Ratios(width=4.0, depth=1.0, fan_in=4.0, fan_out=1.0)
    ```
    """

    width: float = 1.0
    depth: float = 1.0
    fan_in: float = 1.0
    fan_out: float = 1.0

    def seen_by(self, rule: RuleName) -> "Ratios":
        """Return the ratios with those that `rule` does not look at set to 1."""
        if rule == "standard":
            return Ratios()
        # With `mup`, fan-in and fan-out stay: they are widths too.
        return self if rule == "completep" else replace(self, depth=1.0)


@dataclass(frozen=True)
class Power:
    """A monomial in the ratios, by its exponents.

    Example:

    ```python
    >>> rate = Power(fan_in=-1, depth=-0.5)
    >>> rate(Ratios(fan_in=4.0, depth=4.0)), rate.formula("η")
    (0.125, 'η/m_in·m_L^-0.5')
    ```
    """

    width: float = 0.0
    depth: float = 0.0
    fan_in: float = 0.0
    fan_out: float = 0.0

    def __call__(self, ratios: Ratios) -> float:
        """Return its value; exactly 1 where all ratios are 1."""
        widths = ratios.width**self.width * ratios.fan_in**self.fan_in * ratios.fan_out**self.fan_out
        return float(widths * ratios.depth**self.depth)

    def formula(self, symbol: str, rule: RuleName = "completep") -> str:
        """Write it as people do: `η/m_in·m_L^-0.5`."""
        names = {"m_N": self.width, "m_in": self.fan_in, "m_out": self.fan_out, "m_L": self.depth}
        if rule == "standard":
            names = {}
        elif rule == "mup":
            del names["m_L"]
        return symbol + "".join(_factor(name, exponent) for name, exponent in names.items())


ONE = Power()


@dataclass(frozen=True)
class OptimizerFactors:
    """What a parameter's own init, learning rate, weight decay and Adam eps are multiplied by.

    Weight decay is decoupled (the decay per step is `lr * weight_decay`); a factor of 0 marks what is not decayed.

    Example:

    ```python
    >>> OptimizerFactors(lr=0.25).absorb(2.0)
    OptimizerFactors(init=2.0, lr=0.5, weight_decay=0.5, eps=0.5)
    ```
    """

    init: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0

    def absorb(self, factor: float) -> "OptimizerFactors":
        """Move `factor` out of the forward pass and into the stored weight.

        Training W = c * w with (c * lr, weight_decay / c, eps / c), from c times the init, is under Adam the same as
        training w with (lr, weight_decay, eps) in a forward pass that multiplies it by c: the symmetry of
        arXiv:2203.03466 with its eps and decoupled decay. Clipping by the *global* gradient norm breaks it.
        """
        return OptimizerFactors(
            init=self.init * factor,
            lr=self.lr * factor,
            weight_decay=self.weight_decay / factor,
            eps=self.eps / factor,
        )


@dataclass(frozen=True)
class Rule:
    """One row of the table: how one role scales, and why.

    The `muon` columns hold for matrices whose update is orthogonalised to spectral norm 1 (Muon without a shape factor
    of its own); they are `None` for what Muon must not touch, which keeps its AdamW columns.

    Args:
        role (`Role`): whose row it is.
        init, multiplier, lr, eps (`Power`): of the init std, the forward pass, the learning rate and Adam's eps.
        weight_decay (`Power` or `None`): of the decoupled weight decay; `None` for what is not decayed.
        reason (`str`): why, in a clause.
        muon_lr, muon_weight_decay, muon_eps (`Power` or `None`): the same under Muon.

    Example:

    ```python
    >>> rule_table()["readout"].multiplier.formula("1")
    '1/m_N'
    ```
    """

    role: Role
    init: Power
    multiplier: Power
    lr: Power
    weight_decay: Power | None
    eps: Power
    reason: str
    muon_lr: Power | None = None
    muon_weight_decay: Power | None = None
    muon_eps: Power | None = None


def rule_table(depth_alpha: float = 1.0) -> Mapping[Role, Rule]:
    """Return the rule of every role.

    Args:
        depth_alpha (`float`): the exponent of the residual multiplier m_L^-alpha: 1 (CompleteP) or 0.5 (depth-muP).

    Example:

    ```python
    >>> rule_table()["hidden"].lr(Ratios(width=4, depth=2, fan_in=4))
    0.25
    ```
    """
    # Table 1 of arXiv:2505.01618: inside the blocks lr ~ m_L^(alpha-1) and eps ~ m_L^-alpha. The branch multiplier
    # m_L^-alpha shrinks every gradient of a block by the same factor, and eps must stay as small beside the gradient
    # as at the base.
    block_lr, block_eps = depth_alpha - 1, -depth_alpha
    matrix = Rule(
        role="hidden",
        # A std, so the variance falls as 1/m_in.
        init=Power(fan_in=-0.5),
        multiplier=ONE,
        lr=Power(fan_in=-1, depth=block_lr),
        # lr * weight_decay is what decays the weight in a step; m_in cancels the 1/m_in of the rate.
        weight_decay=Power(fan_in=1),
        eps=Power(width=-1, depth=block_eps),
        reason="sums over a growing axis: each entry must move less, and lr times decay stays what it was",
        # The spectral condition: an update of spectral norm sqrt(m_out / m_in), relative to the base's.
        muon_lr=Power(fan_in=-0.5, fan_out=0.5, depth=block_lr),
        muon_weight_decay=Power(fan_in=0.5, fan_out=-0.5),
        # Muon's eps is a floor under the Frobenius norm of the gradient. Its entries shrink as 1/m_N and their number
        # grows as m_N^2, so the width cancels.
        muon_eps=Power(depth=block_eps),
    )
    vector = Rule(
        role="norm",
        init=ONE,
        multiplier=ONE,
        lr=Power(depth=block_lr),
        weight_decay=None,
        eps=Power(width=-1, depth=block_eps),
        reason="acts on each coordinate by itself, so only depth changes its step; gains and biases are not decayed",
    )
    # Table 1 of arXiv:2505.01618 scales eps inside the blocks only. But the gradients of the embedding and of the
    # readout shrink as 1/m_N too, and not with depth, so their eps follows the width alone.
    lookup = Rule(
        role="embedding",
        init=ONE,
        multiplier=ONE,
        lr=ONE,
        weight_decay=ONE,
        eps=Power(width=-1),
        reason="a lookup sums over nothing, so its entries keep size and step; its gradient shrinks with width",
    )
    rules = [
        lookup,
        matrix,
        replace(matrix, role="router", reason="a matrix that reads the stream: scaled as the other matrices are"),
        vector,
        replace(vector, role="bias", reason="added to each coordinate by itself: as a gain"),
        replace(
            vector,
            role="final_norm",
            lr=ONE,
            eps=Power(width=-1),
            reason="a gain outside the blocks: depth does not reach it",
        ),
        replace(
            lookup,
            # The form of Table 8 in arXiv:2203.03466. Table 3 has no multiplier and puts 1/m_in into init and rate
            # instead; the matrix could then not be shared with the embedding.
            role="readout",
            multiplier=Power(width=-1),
            reason="its logits are divided by m_N, so the matrix keeps an embedding's init and step and may be tied",
        ),
    ]
    return {rule.role: rule for rule in rules}


@dataclass(frozen=True)
class Parametrization:
    """A choice of rules and of the constants that are tuned once, at the base shape.

    Args:
        rule (`"standard"`, `"mup"` or `"completep"`): which ratios are looked at.
        depth_alpha (`float`): the exponent of the residual multiplier m_L^-alpha, in [0.5, 1]; `completep` only.
        embedding_alpha (`float`): the embedding's forward multiplier.
        readout_alpha (`float`): the logits' forward multiplier, beside 1/m_N.
        zero_init_readout (`bool`): start the readout at 0 (untied models).
        zero_init_query (`bool`): start the query projections at 0.

    Raises:
        ValueError: on an unknown rule or a constant out of its range.

    Example:

    ```python
    >>> completep = Parametrization()
    >>> completep.residual_multiplier(depth=4.0)
    0.25
    >>> completep.factors("hidden", Ratios(width=4.0, depth=4.0, fan_in=4.0)).lr
    0.25
    ```
    """

    rule: RuleName = "completep"
    depth_alpha: float = 1.0
    embedding_alpha: float = 1.0
    readout_alpha: float = 1.0
    zero_init_readout: bool = False
    zero_init_query: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"The muP rule {self.rule!r} is unknown; use one of {', '.join(RULES)}.")
        for name, value in {
            "zero_init_readout": self.zero_init_readout,
            "zero_init_query": self.zero_init_query,
        }.items():
            if not isinstance(value, bool):
                raise ValueError(f"muP's {name} is {value!r}; it must be true or false.")
        for name, alpha in {"embedding_alpha": self.embedding_alpha, "readout_alpha": self.readout_alpha}.items():
            if not (_is_number(alpha) and alpha > 0):
                raise ValueError(f"muP's {name} is {alpha!r}; it must be a positive number.")
        if not (_is_number(self.depth_alpha) and 0.5 <= self.depth_alpha <= 1):
            raise ValueError(f"muP's depth_alpha is {self.depth_alpha!r}; it must lie between 0.5 and 1.")

    def residual_multiplier(self, depth: float) -> float:
        """Return what each residual branch is multiplied by in a model that is `depth` times as deep as its base."""
        return float(Ratios(depth=depth).seen_by(self.rule).depth ** -self.depth_alpha)

    def multiplier(self, role: Role, ratios: Ratios) -> float:
        """Return what the output of a parameter is multiplied by in the forward pass."""
        # The alphas are tuned at the base, so no rule hides them: `standard` multiplies by them too.
        alpha = {"embedding": self.embedding_alpha, "readout": self.readout_alpha}.get(role, 1.0)
        return rule_table(self.depth_alpha)[role].multiplier(ratios.seen_by(self.rule)) * alpha

    def factors(self, role: Role, ratios: Ratios) -> OptimizerFactors:
        """Return the AdamW factors of a parameter.

        Args:
            role (`Role`): what the parameter is for.
            ratios (`Ratios`): its sizes relative to the base; outside the blocks the depth must be 1.
        """
        rule = rule_table(self.depth_alpha)[role]
        seen = ratios.seen_by(self.rule)
        return OptimizerFactors(
            init=rule.init(seen),
            lr=rule.lr(seen),
            # None in the table (gains, biases) becomes the factor 0, which `group_weight_decay` never decays.
            weight_decay=rule.weight_decay(seen) if rule.weight_decay is not None else 0.0,
            eps=rule.eps(seen),
        )

    def muon_factors(self, role: Role, ratios: Ratios) -> OptimizerFactors:
        """Return the factors under Muon; for the roles that Muon must not touch, those of AdamW."""
        rule = rule_table(self.depth_alpha)[role]
        adamw = self.factors(role, ratios)
        if rule.muon_lr is None or rule.muon_weight_decay is None or rule.muon_eps is None:
            return adamw
        seen = ratios.seen_by(self.rule)
        return replace(
            adamw, lr=rule.muon_lr(seen), weight_decay=rule.muon_weight_decay(seen), eps=rule.muon_eps(seen)
        )


def _is_number(value: object) -> bool:
    # `bool` is a subclass of `int`: without the second test `true` in a config would count as 1.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _factor(name: str, exponent: float) -> str:
    if exponent == 0:
        return ""
    if exponent == -1:
        return f"/{name}"
    return f"·{name}" if exponent == 1 else f"·{name}^{exponent:g}"
