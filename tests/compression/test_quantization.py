"""Fake quantization: the grid of values, and torchao's own round trip."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from hf_warmscale.compression.quantization import fake_quantize, num_scales, quantization_config
from hf_warmscale.compression.storage import stored_bytes
from tests.test_package import ROOT

TORCHAO = os.environ.get("WARMSCALE_TORCHAO")
"""A folder with torchao in it; where it is installed, transformers imports it, which costs every process seconds."""


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 8, 7])
def test_a_row_has_few_values_and_none_is_far_away(bits: int, group_size: int | None) -> None:
    """At most half a step from its weight, but for the one at the upper end, which is cut to half a step more."""
    weight = torch.randn(6, 32)
    rounded = fake_quantize(weight, bits, group_size)
    for start in range(0, 32, group_size or 32):
        group, new = (each[:, start : start + (group_size or 32)] for each in (weight, rounded))
        step = group.abs().amax(1, keepdim=True) / ((2**bits - 1) / 2)
        assert bool(((group - new).abs() <= 0.5001 * step).all())
        torch.testing.assert_close((new / step).round() * step, new)
    assert torch.equal(fake_quantize(rounded * 0, bits, group_size), torch.zeros(6, 32))


def test_zeros_stay_zeros() -> None:
    weight = torch.randn(4, 16).masked_fill(torch.rand(4, 16) < 0.5, 0.0)
    assert not fake_quantize(weight, 4)[weight == 0].any()


def test_floats_are_casts() -> None:
    weight = torch.randn(4, 4)
    assert torch.equal(fake_quantize(weight, 16), weight.bfloat16().float())
    assert torch.equal(fake_quantize(weight, 32), weight)


@pytest.mark.parametrize("bits", [1, 9, 33, 0, -8])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits}; give 2 to 8"):
        fake_quantize(torch.ones(2, 2), bits)
    with pytest.raises(ValueError, match=f"bits is {bits};"):
        quantization_config(bits)


def test_a_group_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size is 0"):
        fake_quantize(torch.ones(2, 2), 8, 0)


def test_bytes_count_scales_and_masks() -> None:
    weight = torch.ones(10, 32)
    assert stored_bytes(weight) == 10 * 32 * 4
    assert stored_bytes(weight, 16) == 10 * 32 * 2
    assert stored_bytes(weight, 4) == 10 * 16 + 10 * 4
    assert stored_bytes(weight, 3, 16) == 10 * 12 + 20 * 4
    assert num_scales((10, 33), 16) == 30
    weight[:, 8:] = 0
    assert stored_bytes(weight, 8) == 320 + 40
    assert stored_bytes(weight, 8, sparse=True) == 80 + 40 + 40  # a quarter of the values, the mask, the scales
    weight[:, 1:] = 1
    assert stored_bytes(weight, 4, sparse=True) == stored_bytes(weight, 4)  # the mask would not pay


def test_without_torchao_there_is_no_config() -> None:
    if find_spec("torchao") is not None:
        pytest.skip("torchao is installed")
    with pytest.raises(ValueError, match="torchao is not installed"):
        quantization_config(8)


@pytest.mark.skipif(not TORCHAO and find_spec("torchao") is None, reason="there is no torchao")
def test_torchao_agrees() -> None:
    """In a process of its own, so that no other test imports torchao."""
    path = os.pathsep.join([str(ROOT), *([TORCHAO] if TORCHAO else [])])
    command = [sys.executable, "-m", "tests.compression.torchao_worker"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "agrees"
