"""The bits of keyed streams are part of what receipts promise: a seed makes the same model again."""

import torch

from hf_warmscale.keyed_random import keyed_generator

EXPECTED = {63: [0.5630356073379517, 0.14893436431884766], 64: [0.3829898238182068, 0.9339977502822876]}


def test_the_bits_do_not_change() -> None:
    """As computed by version 0.1.0."""
    drawn = {bits: torch.rand(2, generator=keyed_generator("0:model.norm.weight", bits=bits)) for bits in (63, 64)}
    assert drawn[63].tolist() == EXPECTED[63] and drawn[64].tolist() == EXPECTED[64]


def test_keys_part_streams_and_global_state_does_not_matter() -> None:
    first = torch.rand(8, generator=keyed_generator("a"))
    torch.manual_seed(7)
    assert torch.equal(first, torch.rand(8, generator=keyed_generator("a")))
    assert not torch.equal(first, torch.rand(8, generator=keyed_generator("b")))
