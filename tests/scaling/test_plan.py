"""A plan compares options by one law: its arithmetic by hand, its break-even as an equation, its advice both ways."""

import time
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from hf_warmscale import describe, fit_scaling_law, plan
from hf_warmscale.scaling import ScalingLaw, measure_throughput, published
from hf_warmscale.scaling.plan_rows import Row
from tests.scaling.measurements import TRUE, ladder, true_loss

SMALL, LARGE = 135_000_000, 360_000_000


def own(**transfer: float) -> ScalingLaw:
    """A law of one's own: of grown models too, if the transfer is given."""
    return ScalingLaw("grown" if transfer else "chinchilla", {**TRUE, **transfer})


def by_option(rows: list[Row]) -> dict[str, Row]:
    return {row.option: row for row in rows}


def test_losses_and_costs_by_hand() -> None:
    found = plan(target=LARGE, tokens=5e9, candidates=[(SMALL, 1e11)], law=own(), tokens_per_second=1e4)
    rows = by_option(found.rows)
    assert rows["scratch"].loss == pytest.approx(true_loss(LARGE, 5e9))
    assert rows["train on"].loss == pytest.approx(true_loss(SMALL, 1.05e11))
    assert rows["continue with replay"].loss == pytest.approx(true_loss(SMALL, 1e11 + 0.05 * 5e9))
    assert rows["merge"].loss == pytest.approx(true_loss(SMALL, 1e11))
    assert rows["grow"].loss is None
    assert rows["scratch"].flops == rows["scratch"].flops_with_base == pytest.approx(6 * LARGE * 5e9)
    assert rows["grow"].flops_with_base == pytest.approx(6 * LARGE * 5e9 + 6 * SMALL * 1e11)
    assert rows["scratch"].hours == pytest.approx(5e9 / 1e4 / 3600)
    assert (rows["grow"].inference_flops, rows["merge"].inference_flops) == (2 * LARGE, 2 * SMALL)


def test_one_model_known_by_its_size_alone_makes_all_cost_by_their_size() -> None:
    """Attention counted on one side only would make a small model with long rows seem dearer than a larger one."""
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, vocab_size=128)
    parameters = describe(config).num_parameters()
    rows = by_option(plan(target=4 * parameters, tokens=1e6, candidates=[(config, 1e5)], sequence_length=8192).rows)
    assert rows["merge"].inference_flops == 2 * parameters < rows["scratch"].inference_flops
    both = by_option(plan(target=LARGE, tokens=1e6, candidates=[(SMALL, 1e5)], sequence_length=8192).rows)
    assert both["merge"].inference_flops == 2 * SMALL


def test_a_budget_of_flops_buys_the_small_model_more_tokens() -> None:
    rows = by_option(plan(target=LARGE, flops=1e19, candidates=[(SMALL, 1e11)], law=own()).rows)
    assert rows["train on"].tokens / rows["scratch"].tokens == pytest.approx(LARGE / SMALL)
    assert rows["train on"].flops == pytest.approx(rows["grow"].flops)


def test_a_budget_of_hours_is_one_of_the_tokens_of_the_target() -> None:
    rows = by_option(plan(target=LARGE, hours=10, tokens_per_second=1000, candidates=[(SMALL, 1e11)]).rows)
    assert rows["scratch"].tokens == pytest.approx(3.6e7)
    assert rows["train on"].hours == pytest.approx(10)


def test_a_base_that_is_worth_the_break_even_makes_growing_even() -> None:
    """The transfer k D0 g^-q is set to the break-even: the grown model ends where the small one trained on does."""
    candidates = [(SMALL, 1e11)]
    (even,) = plan(target=LARGE, tokens=5e9, candidates=candidates, law=own()).break_even
    assert even.over_training_on is not None and even.over_training_on > 0
    law = own(k=even.over_training_on / 1e11, p=1.0, q=0.0)
    rows = by_option(plan(target=LARGE, tokens=5e9, candidates=candidates, law=law).rows)
    assert rows["grow"].loss == pytest.approx(rows["train on"].loss)
    charged = own(k=even.over_scratch_with_base / 1e11, p=1.0, q=0.0)
    grown = by_option(plan(target=LARGE, tokens=5e9, candidates=candidates, law=charged).rows)["grow"]
    same_compute = by_option(plan(target=LARGE, flops=grown.flops_with_base, law=charged).rows)["scratch"]
    assert grown.loss == pytest.approx(same_compute.loss)


def test_growing_is_advised_where_it_pays() -> None:
    advice = plan(target=LARGE, tokens=5e9, candidates=[(SMALL, 1e11)], law=own(k=0.8, p=1.0, q=0.2)).advice
    assert advice.startswith("Grow 135M: it ends at 2.489, and the next best, train on 135M, at 2.660")
    assert "with the base's own compute charged, growing still beats scratch" in advice
    charged = plan(target=LARGE, tokens=5e10, candidates=[(SMALL, 1e11)], law=own(k=0.3, p=1.0, q=0.2)).advice
    assert "growing no longer beats scratch" in charged


def test_growing_is_not_advised_where_the_base_is_worth_little() -> None:
    law = own(k=0.001, p=1.0, q=1.0)
    advice = plan(target=LARGE, tokens=5e9, candidates=[(SMALL, 2e12)], law=law).advice
    assert advice.startswith("Growing is not worth it here, because train on 135M ends at")


def test_growing_is_not_advised_for_less_than_the_noise_of_a_run() -> None:
    law = own(k=0.8, p=1.0, q=0.2)
    advice = plan(target=LARGE, tokens=1e12, candidates=[(SMALL, 1e10)], law=law).advice
    assert advice.startswith("Growing is not worth it here, because it ends at 2.")
    assert "below the noise of one run" in advice


def test_growing_is_not_advised_where_a_base_would_have_to_be_worth_more_than_it_saw() -> None:
    """For the compute of a few steps of a model 20 times as large, the small one is trained on for far longer."""
    target = 20 * SMALL
    found = plan(target=target, flops=6 * target * 2e7, candidates=[(SMALL, 1e8)], law=own())
    assert (found.break_even[0].over_training_on or 0) > 1e8
    assert found.advice.startswith("Growing is not worth it here, because to end as low as train on 135M")


def test_growing_is_not_advised_where_the_budget_dwarfs_the_base() -> None:
    advice = plan(target=LARGE, tokens=1e12, candidates=[(SMALL, 1e10)], law=own()).advice
    gain = 1 - true_loss(LARGE, 1.01e12) / true_loss(LARGE, 1e12)
    assert advice.startswith("Growing is not worth it here, because even if every token behind the base counted")
    assert f"by {gain:.2%} of scratch's" in advice


def test_a_plan_says_how_far_it_goes_beyond_its_law() -> None:
    law = fit_scaling_law(ladder())
    assumed = plan(target=LARGE, tokens=6.4e9, candidates=[(SMALL, 6.4e10)], law=law).assumptions
    assert "The plan goes beyond the points of the law: to 2.25 times the most parameters and 11 times" in " ".join(
        assumed
    )
    inside = plan(target=SMALL, tokens=1e9, candidates=[(SMALL // 2, 1e9)], law=law).assumptions
    assert not any("beyond" in line for line in inside)


def test_published_constants_give_ratios_only() -> None:
    found = plan(target=LARGE, tokens=5e9, candidates=[(SMALL, 2e12)])
    assert all(row.loss is None and row.interval is None for row in found.rows)
    law = published()
    ratio = law.predict(N=SMALL, D=2e12 + 5e9) / law.predict(N=LARGE, D=5e9)
    assert by_option(found.rows)["train on"].relative_loss == pytest.approx(ratio)
    assert "2404.10102" in found.assumptions[0]
    assert "only if the base is worth 36.2B tokens" in found.advice


def test_models_cost_what_their_configs_say() -> None:
    target, base = (LlamaConfig(hidden_size=size, num_attention_heads=4, vocab_size=500) for size in (64, 32))
    rows = by_option(plan(target=target, tokens=1e6, candidates=[(base, 1e6)], sequence_length=128).rows)
    assert rows["scratch"].flops == describe(target).flops_per_token(128) * 1e6
    assert rows["train on"].inference_flops == describe(base).flops_per_token(128, training=False)
    assert rows["grow"].num_parameters == describe(target).num_parameters()


def test_nats_of_different_vocabularies_are_not_compared() -> None:
    target, base = (
        LlamaConfig(hidden_size=size, num_attention_heads=4, vocab_size=vocab)
        for size, vocab in ((64, 500), (32, 400))
    )
    found = by_option(plan(target=target, tokens=1e6, candidates=[(base, 1e6)]).rows)
    assert found["train on"].relative_loss is None
    assert "bits per byte" in found["train on"].note
    law = ScalingLaw("chinchilla", dict(TRUE), unit="bits")
    compared = by_option(plan(target=target, tokens=1e6, candidates=[(base, 1e6)], law=law).rows)
    assert compared["train on"].relative_loss is not None


def test_throughput_is_that_of_a_live_model() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    begin = time.perf_counter()
    rate = measure_throughput(config, sequence_length=16, batch_size=2, steps=3, device="cpu")
    assert rate > 3 * 32 / (time.perf_counter() - begin)
    assert torch.is_grad_enabled()


def test_hours_are_measured_by_steps_of_the_live_target() -> None:
    small: dict[str, Any] = {
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    target, base = (LlamaConfig(hidden_size=size, **small) for size in (16, 8))
    found = plan(target=target, hours=1.0, candidates=[(base, 1e6)], sequence_length=16)
    scratch = found.rows[0]
    assert scratch.hours == pytest.approx(1.0)
    assert scratch.tokens > 0
    assert "tokens per second" in " ".join(found.assumptions)


REFUSED = {
    "two budgets": ({"tokens": 1e9, "flops": 1e19}, "one budget, not tokens and flops"),
    "no budget": ({}, "one budget, not none"),
    "a budget of nothing": ({"tokens": 0}, "buys nothing"),
    "a candidate as large as the target": ({"tokens": 1e9, "candidates": [(LARGE, 1e9)]}, "shrink it"),
    "a candidate without tokens": ({"tokens": 1e9, "candidates": [(SMALL, None)]}, "how many it was trained on"),
    "hours of nothing to time": ({"hours": 2}, "needs tokens_per_second"),
    "too much replay": ({"tokens": 1e9, "replay": 1.0}, "replay is 1"),
    "a law at fixed data": (
        {"tokens": 1e9, "law": ScalingLaw("power", {"a": 900.0, "b": -0.4, "c": 2.9})},
        "at fixed data",
    ),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_plan_that_makes_no_sense_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(target=LARGE, **arguments)  # type: ignore[arg-type]  # arguments of several types
