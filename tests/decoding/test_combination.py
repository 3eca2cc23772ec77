"""The combination is one function of log-probabilities, and its special cases are exact."""

import pytest
import torch
from torch import Tensor

from hf_warmscale.decoding import combine_log_probs
from hf_warmscale.decoding.combination import nucleus


def random(seed: int, rows: int = 5, vocabulary: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(dim=-1)


L, S, T, U = (random(seed) for seed in range(4))


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=1e-13)


def test_the_formula() -> None:
    expected = S + 0.3 * (T - S) + 0.9 * (U - S) + 1.25 * (L - S)
    close(
        combine_log_probs(L, [T, U], S, weights=[0.3, 0.9], beta=1.25), expected - expected.logsumexp(-1, keepdim=True)
    )


@pytest.mark.parametrize("top_p", [None, 0.9])
def test_identities(top_p: float | None) -> None:
    close(combine_log_probs(S, [T], S, weights=[1.0], upscale_top_p=top_p), T)
    close(combine_log_probs(L, [T], S, weights=[1.0], beta=0.0, upscale_top_p=top_p), T)
    close(combine_log_probs(L, [S], S, weights=[1.0]), L)
    close(combine_log_probs(L, [T, U], S, weights=[0.25, 0.75], beta=0.0), (0.25 * T + 0.75 * U).log_softmax(-1))
    close(combine_log_probs(L, [T, U], S, weights=[1.0, 0.0]), combine_log_probs(L, [T], S, weights=[1.0]))


def test_a_constant_on_the_logits_changes_nothing_with_a_nucleus() -> None:
    shifted = (L + 5.0).log_softmax(-1)
    one, two = (combine_log_probs(base, [T], S, weights=[1.0], upscale_top_p=0.8) for base in (L, shifted))
    close(one, two)


def test_outside_the_nucleus_of_the_tuned_model_the_ratio_is_one() -> None:
    combined = combine_log_probs(L, [T], S, weights=[1.0], upscale_top_p=0.9)
    outside = ~nucleus(T, 0.9)
    assert outside.any(dim=-1).all() and (~outside).any(dim=-1).all()
    ratio = combined - T  # up to one constant per row
    normaliser = torch.logsumexp(T + torch.where(outside, 0.0, L - S), dim=-1, keepdim=True)
    close(ratio[outside], (-normaliser).expand_as(ratio)[outside])
    close(ratio[~outside], (L - S - normaliser)[~outside])
    close(combine_log_probs(L, [T], S, weights=[1.0], upscale_top_p=1.0), combine_log_probs(L, [T], S, weights=[1.0]))


def test_the_nucleus_is_the_smallest_set() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    for top_p, members in ((0.4, [1]), (0.5, [1]), (0.6, [1, 3]), (0.76, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        assert nucleus(probabilities.log(), top_p).nonzero()[:, 0].tolist() == members
