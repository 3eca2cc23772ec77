"""Muon's groups: the matrices of the blocks, at rates that undo what torch's own shape factor makes of the width."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_warmscale.architecture import describe
from hf_warmscale.mup import Parametrization, muon_param_groups, muon_shape_factor
from hf_warmscale.mup.realization import realize
from tests.mup.tiny import tiny_mup

ADJUSTMENTS = (None, "original", "match_rms_adamw")


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_what_torch_does_is_what_the_table_says(adjust: str | None) -> None:
    """Rate times torch's factor, relative to the base's, is the column for Muon; so is the decay of a step."""
    model = tiny_mup(intermediate_size=192, mup={"base_hidden_size": 16, "base_intermediate_size": 24})
    muon, _ = muon_param_groups(model, lr=0.02, adamw_lr=1e-2, weight_decay=0.1, adjust_lr_fn=adjust)
    realization, described = realize(model.config), describe(model.config)
    for name, parameter in model.named_parameters():
        group = next((g for g in muon if any(parameter is each for each in g["params"])), None)
        if group is None:
            continue
        scaling, place = realization.scalings[name], described.parameters[name]
        wanted = realization.parametrization.muon_factors(scaling.role, scaling.ratios)
        shape = place.shape(described.sizes)
        base = shape[0] / scaling.ratios.fan_out, shape[1] / scaling.ratios.fan_in
        done = group["lr"] * muon_shape_factor(shape, adjust) / muon_shape_factor(base, adjust)
        assert done == pytest.approx(0.02 * wanted.lr, rel=1e-12), name
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.02 * wanted.lr * 0.1 * wanted.weight_decay)


def test_every_parameter_is_in_one_group() -> None:
    """Muon has matrices of blocks only; both optimizers take a step."""
    model = tiny_mup(tie_word_embeddings=False)
    groups = muon_param_groups(model, lr=0.02, adamw_lr=1e-2)
    held = [[id(parameter) for group in each for parameter in group["params"]] for each in groups]
    assert sorted(held[0] + held[1]) == sorted(map(id, model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("proj" in names[number] for number in held[0])
    assert not any("proj" in names[number] for number in held[1])
    optimizers = torch.optim.Muon(groups[0]), torch.optim.AdamW(groups[1])
    ids = torch.arange(24)[None] % 48
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(input_ids=ids, labels=ids).loss.backward()
    for optimizer in optimizers:
        optimizer.step()  # type: ignore[no-untyped-call]
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_at_the_base_nothing_is_scaled() -> None:
    model = tiny_mup(mup={"base_hidden_size": 64, "base_num_hidden_layers": 4})
    muon, adamw = muon_param_groups(model, lr=0.02, adamw_lr=1e-2, weight_decay=0.1)
    assert {group["lr"] for group in muon} == {0.02} and {group["lr"] for group in adamw} == {1e-2}


def test_matrices_that_are_stored_the_other_way_round() -> None:
    """GPT-2's `[in, out]`: torch's factor looks at the stored shape, muP at what is read and written."""
    sizes = {"vocab_size": 48, "n_positions": 32, "n_layer": 1}
    base, wide = (AutoConfig.for_model("gpt2", n_embd=width, n_head=width // 8, **sizes) for width in (16, 64))
    model = AutoModelForCausalLM.from_config(wide)
    muon, _ = muon_param_groups(model, lr=0.02, adamw_lr=1e-2, base_config=base, parametrization=Parametrization())
    rates = [group["lr"] for group in muon]
    assert rates == pytest.approx([0.02] * len(rates))  # all widths grow together: neither factor moves


@pytest.mark.parametrize("shape", [(8, 2), (2, 8), (4, 4)])
def test_the_factor_is_that_of_torch(shape: tuple[int, int]) -> None:
    """Two Muons that differ in `adjust_lr_fn` move one matrix by the ratio of their factors."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    moved = {}
    for adjust in ("original", "match_rms_adamw"):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = gradient.clone()
        torch.optim.Muon([weight], lr=0.1, weight_decay=0.0, adjust_lr_fn=adjust).step()
        moved[adjust] = float(weight.detach().norm())
    factors = {adjust: muon_shape_factor(shape, adjust) for adjust in moved}
    expected = factors["original"] / factors["match_rms_adamw"]
    assert moved["original"] / moved["match_rms_adamw"] == pytest.approx(expected, rel=1e-5)
