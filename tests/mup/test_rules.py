"""The table against its sources: the vector of arXiv:2505.01618 (Table 1), Adam's symmetry, base = standard."""

import math

import pytest
import torch

from hf_warmscale.architecture.model_map import Role
from hf_warmscale.mup import OptimizerFactors, Parametrization, Ratios, group_weight_decay, rule_table
from hf_warmscale.options import RuleName

ROLES: tuple[Role, ...] = ("embedding", "hidden", "readout", "norm", "final_norm", "bias", "router")
IN_BLOCK: tuple[Role, ...] = ("hidden", "norm", "bias", "router")
WIDER_DEEPER = Ratios(width=4, depth=2, fan_in=4, fan_out=4)
WIDER = Ratios(width=4, fan_in=4, fan_out=4)


def factors(role: Role, rule: RuleName = "completep", alpha: float = 1.0) -> OptimizerFactors:
    return Parametrization(rule, depth_alpha=alpha).factors(role, WIDER_DEEPER if role in IN_BLOCK else WIDER)


# (init, lr, weight decay, eps) at four times the width and twice the depth.
COMPLETEP: dict[Role, tuple[float, float, float, float]] = {
    "embedding": (1, 1, 1, 1 / 4),
    "hidden": (1 / 2, 1 / 4, 4, 1 / 8),
    "router": (1 / 2, 1 / 4, 4, 1 / 8),
    "norm": (1, 1, 0, 1 / 8),
    "bias": (1, 1, 0, 1 / 8),
    "final_norm": (1, 1, 0, 1 / 4),
    "readout": (1, 1, 1, 1 / 4),
}
ROOT = math.sqrt(2)
DEPTH_MUP: dict[Role, tuple[float, float, float, float]] = {
    **COMPLETEP,
    "hidden": (1 / 2, 1 / (4 * ROOT), 4, 1 / (4 * ROOT)),
    "router": (1 / 2, 1 / (4 * ROOT), 4, 1 / (4 * ROOT)),
    "norm": (1, 1 / ROOT, 0, 1 / (4 * ROOT)),
    "bias": (1, 1 / ROOT, 0, 1 / (4 * ROOT)),
}
MUP: dict[Role, tuple[float, float, float, float]] = {
    **COMPLETEP,
    "hidden": (1 / 2, 1 / 4, 4, 1 / 4),
    "router": (1 / 2, 1 / 4, 4, 1 / 4),
    "norm": (1, 1, 0, 1 / 4),
    "bias": (1, 1, 0, 1 / 4),
}


@pytest.mark.parametrize("role", ROLES)
def test_vector_of_the_paper(role: Role) -> None:
    assert close(factors(role), COMPLETEP[role])
    assert close(factors(role, alpha=0.5), DEPTH_MUP[role])
    assert close(factors(role, "mup"), MUP[role])
    assert close(factors(role, "standard"), (1, 1, float(rule_table()[role].weight_decay is not None), 1))


def close(got: OptimizerFactors, expected: tuple[float, float, float, float]) -> bool:
    return all(
        math.isclose(value, wanted, rel_tol=1e-15)
        for value, wanted in zip((got.init, got.lr, got.weight_decay, got.eps), expected, strict=True)
    )


def test_forward_multipliers() -> None:
    parametrization = Parametrization(embedding_alpha=12.0, readout_alpha=3.0)
    assert parametrization.multiplier("embedding", WIDER) == 12
    assert parametrization.multiplier("readout", WIDER) == 3 / 4
    assert parametrization.multiplier("hidden", WIDER_DEEPER) == 1
    assert parametrization.residual_multiplier(2) == 0.5
    assert Parametrization(depth_alpha=0.5).residual_multiplier(2) == 2**-0.5
    assert Parametrization("mup").residual_multiplier(2) == 1
    assert Parametrization("standard").multiplier("readout", WIDER) == 1


@pytest.mark.parametrize("rule", ["standard", "mup", "completep"])
@pytest.mark.parametrize("role", ROLES)
def test_base_shape_is_standard_exactly(role: Role, rule: RuleName) -> None:
    base = Parametrization(rule, depth_alpha=0.75)
    assert base.factors(role, Ratios()) == Parametrization("standard").factors(role, WIDER_DEEPER)
    assert base.multiplier(role, Ratios()) == 1
    assert base.residual_multiplier(1) == 1


@pytest.mark.parametrize("width", [2.0, 3.0, 10.0])
def test_decay_per_step_does_not_depend_on_width(width: float) -> None:
    """lr * weight decay of a matrix is that of the base: the average runs over the same number of steps."""
    wider = Parametrization("mup").factors("hidden", Ratios(width=width, fan_in=width, fan_out=width))
    assert wider.lr * wider.weight_decay == pytest.approx(1, rel=1e-15)


def test_muon_keeps_the_spectral_norm_of_the_update_and_touches_matrices_only() -> None:
    parametrization = Parametrization()
    square = parametrization.muon_factors("hidden", WIDER_DEEPER)
    assert (square.lr, square.weight_decay, square.eps) == (1, 1, 1 / 2)
    narrow_out = parametrization.muon_factors("hidden", Ratios(width=4, fan_in=4, fan_out=1))
    assert (narrow_out.lr, narrow_out.weight_decay) == (1 / 2, 2)
    for role in ("embedding", "readout", "norm", "final_norm", "bias"):
        assert parametrization.muon_factors(role, WIDER) == parametrization.factors(role, WIDER)


def test_adam_symmetry_of_absorb() -> None:
    """c * w trained with the absorbed factors follows w inside a forward pass that multiplies by c, at every step."""
    factor, lr, decay, eps = 0.3, 0.02, 0.1, 1e-3
    data, target = torch.randn(32, 8, dtype=torch.float64), torch.randn(32, 4, dtype=torch.float64)
    start = torch.randn(8, 4, dtype=torch.float64)
    absorbed = OptimizerFactors().absorb(factor)
    outside = torch.nn.Parameter(start.clone())
    inside = torch.nn.Parameter(start * absorbed.init)
    one = torch.optim.AdamW([outside], lr=lr, weight_decay=decay, eps=eps)
    two = torch.optim.AdamW(
        [inside], lr=lr * absorbed.lr, weight_decay=decay * absorbed.weight_decay, eps=eps * absorbed.eps
    )
    for _ in range(50):
        for optimizer, weight, multiplier in ((one, outside, factor), (two, inside, 1.0)):
            optimizer.zero_grad()
            ((data @ weight) * multiplier - target).square().mean().backward()
            optimizer.step()
        assert torch.allclose(inside, factor * outside, rtol=0, atol=1e-12)


def test_symmetry_turns_table_8_into_table_3() -> None:
    """arXiv:2203.03466: the readout with a forward 1/m_N equals one with init 1/m_N and an Adam rate of 1/m_N."""
    readout = factors("readout").absorb(Parametrization().multiplier("readout", WIDER))
    assert close(readout, (1 / 4, 1 / 4, 4, 1))


def test_weight_decay_rules() -> None:
    given = {"factor": 4.0, "lr": 1e-2, "group_lr": 2.5e-3, "weight_decay": 0.1}
    assert group_weight_decay("paper", **given) == 0.4
    assert group_weight_decay("independent", **given) * 2.5e-3 == pytest.approx(0.1, rel=1e-15)
    assert group_weight_decay("constant_lr_wd", **given) * 2.5e-3 == pytest.approx(1e-3, rel=1e-15)
    assert group_weight_decay("ema_timescale", **given, timescale=400.0) == pytest.approx(1.0, rel=1e-15)
    for rule, timescale in (("paper", None), ("independent", None), ("ema_timescale", 400.0)):
        undecayed = {**given, "factor": 0.0}
        assert group_weight_decay(rule, **undecayed, timescale=timescale) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "spectral"}, "'spectral' is unknown; use one of standard, mup, completep"),
        ({"depth_alpha": 2}, "depth_alpha is 2"),
        ({"embedding_alpha": 0}, "embedding_alpha is 0"),
        ({"readout_alpha": "1"}, "readout_alpha is '1'"),
        ({"zero_init_query": 1}, "zero_init_query is 1"),
    ],
)
def test_bad_constants_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parametrization(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "changes", "message"),
    [
        ("kosson", {}, "'kosson' is unknown"),
        ("independent", {"group_lr": 0.0}, "divides by the learning rate, which is 0.0"),
        ("ema_timescale", {}, "ema_timescale needs a timescale in steps, and no other rule takes one"),
        ("paper", {"timescale": 10.0}, "ema_timescale needs a timescale in steps, and no other rule takes one"),
        ("ema_timescale", {"timescale": -1.0}, "timescale of the weight decay is -1.0"),
    ],
)
def test_bad_weight_decay_is_refused(rule: str, changes: dict[str, float], message: str) -> None:
    given = {"factor": 1.0, "lr": 1e-2, "group_lr": 1e-2, "weight_decay": 0.1, **changes}
    with pytest.raises(ValueError, match=message):
        group_weight_decay(rule, **given)  # type: ignore[arg-type]
