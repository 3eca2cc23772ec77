"""Members on different devices and in different dtypes: each runs where and as it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_warmscale.decoding import EmulatedFineTuningForCausalLM
from tests.decoding.tiny import members, tokens
from tests.fake_device import DEVICE, DeviceWithoutFloat64

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


def pair(large: Tensor, tuned: Tensor, small: Tensor) -> Tensor:
    """The formula in float64."""
    large, tuned, small = (each.double().log_softmax(-1) for each in (large, tuned, small))
    return (large + tuned - small).log_softmax(-1)


@torch.no_grad()  # a graph would hold the weights, which then could not be moved
@pytest.mark.parametrize("there", ["base", "small"])
def test_every_member_stays_where_it_is(there: str) -> None:
    base, reference, tuned = (each.float() for each in members())
    plain, chat = tokens(rows=1), tokens(rows=1, length=5, seed=9)
    calls: list[dict[str, Any]] = [{}, {"num_beams": 2}, {"assistant_model": tuned}, {"tuned_input_ids": chat}]
    model = EmulatedFineTuningForCausalLM(base, tuned, reference)
    expected = [model.generate(plain, **each, **GREEDY) for each in calls]
    logits, loss = model(input_ids=plain).logits, model(input_ids=plain, labels=plain).loss
    with DeviceWithoutFloat64():
        for member in [base] if there == "base" else [reference, tuned]:
            nn.Module.to(member, DEVICE)
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        inputs = plain.to(model.device)
        found = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), labels=inputs)
        assert found.logits.device == base.device != tuned.device == reference.device
        torch.testing.assert_close(found.logits.cpu(), logits, rtol=0, atol=1e-5)
        assert float(found.loss) == pytest.approx(float(loss), abs=1e-5)
        # With the base there, `generate` would ask the pretended device for an event.
        for each, produced in zip(calls, expected, strict=True) if there == "small" else ():
            assert model.generate(inputs, **each, **GREEDY).tolist() == produced.tolist()


@torch.no_grad()
def test_a_float64_member_beside_a_device_without_it() -> None:
    """Its log-probabilities are taken in float64 on the CPU, and cast before they move."""
    base, reference, tuned = (each.double() for each in members())
    x = tokens()
    expected = pair(*(member(input_ids=x).logits for member in (base, tuned, reference)))
    with DeviceWithoutFloat64():
        nn.Module.to(base.float(), DEVICE)
        model = EmulatedFineTuningForCausalLM(base, tuned, reference)
        found = model(input_ids=x.to(DEVICE)).logits
        assert found.device == base.device and found.dtype == torch.float32
        torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=1e-4)  # of a float32 base
        # The other way round nothing is cast: the wider member is where there is float64.
        model = EmulatedFineTuningForCausalLM(tuned, base, reference)
        assert model(input_ids=x).logits.dtype == torch.float64


@pytest.mark.parametrize("narrow", ["base", "small"])
def test_every_member_keeps_its_dtype(narrow: str) -> None:
    """Differences are taken in the widest of them, at least float32: no rounding is added to that of the members."""
    base, reference, tuned = (each.float() for each in members())
    for member in [base] if narrow == "base" else [reference, tuned]:
        nn.Module.to(member, torch.bfloat16)
    model = EmulatedFineTuningForCausalLM(base, tuned, reference)
    x = tokens()
    with torch.no_grad():
        expected = pair(*(member(input_ids=x).logits for member in (base, tuned, reference)))
        found = model(input_ids=x).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    model.generate(x, **GREEDY)
    assert [member.dtype for member in (base, tuned)] == [member.plain.dtype for member in model.members[:2]]
