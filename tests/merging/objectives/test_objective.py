"""Scoring a trial in parts, and stopping it where more would be a waste."""

from itertools import pairwise

import numpy as np
import pytest

from hf_warmscale.merging.objectives.objective import (
    DocumentObjective,
    LossObjective,
    prepare_domains,
    score,
    score_against,
)
from tests.conftest import perturb
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer


def documents(count: int) -> DocumentObjective:
    prepared = prepare_domains(tiny_documents(count), tiny_tokenizer(), max_length=64, batch_tokens=512)
    objective = prepared["held-out"]
    assert isinstance(objective, DocumentObjective)
    return objective


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 200])
def test_parts_double_and_cover_all_documents(count: int) -> None:
    objective = documents(count)
    sizes = [len(part) for part in objective.parts]
    assert sum(sizes) == count
    assert sizes[0] >= min(8, count)
    seen = np.cumsum(sizes)
    assert all(later <= 4 * earlier for earlier, later in pairwise(seen))
    assert len(objective.digests) == len(set(tiny_documents(count)))


def test_the_order_of_the_documents_hangs_on_the_seed() -> None:
    texts = tiny_documents(40)
    hashes = {
        prepare_domains(texts, tiny_tokenizer(), max_length=64, batch_tokens=512, seed=seed)["held-out"].sha256
        for seed in (0, 0, 1)
    }
    assert len(hashes) == 2


def test_a_tokenizer_that_cuts_otherwise_is_noticed() -> None:
    texts, other = tiny_documents(4), tiny_tokenizer()
    other.add_tokens([texts[0][:6]])
    first, second = (
        prepare_domains(texts, tokenizer, max_length=64, batch_tokens=512)["held-out"]
        for tokenizer in (tiny_tokenizer(), other)
    )
    assert first.sha256 == second.sha256
    assert first.tokens_sha256 != second.tokens_sha256


def test_a_worse_model_is_stopped_with_a_paired_estimate() -> None:
    """Ten noisy copies: each is stopped on few documents, and its value is near what all documents would give."""
    objective, best = documents(64), tiny_llama()
    incumbent = score(best, objective)
    for seed in range(3):
        worse = tiny_llama()
        perturb(worse, std=0.3, seed=seed)
        value, seen, stopped = score_against(worse, objective, incumbent)
        assert stopped and len(seen) < 64
        full = score(worse, objective).mean
        assert abs(value - full) < 0.3 * abs(full - incumbent.mean)


def test_an_equal_model_is_scored_to_the_end() -> None:
    objective, model = documents(64), tiny_llama()
    incumbent = score(model, objective)
    value, seen, stopped = score_against(model, objective, incumbent)
    assert not stopped and len(seen) == 64
    assert value == incumbent.mean


def test_a_better_model_is_scored_to_the_end() -> None:
    objective, worse = documents(64), tiny_llama()
    perturb(worse, std=0.3)
    _, seen, stopped = score_against(tiny_llama(), objective, score(worse, objective))
    assert not stopped and len(seen) == 64


def test_a_function_gives_its_losses() -> None:
    scores = score(tiny_llama(), LossObjective("task", lambda model: [1.0, 0.0, 1.0]))
    assert scores.mean == pytest.approx(2 / 3) and len(scores) == 3
    assert score(tiny_llama(), LossObjective("task", lambda model: 0.25)).mean == 0.25


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("inf")], []])
def test_a_function_that_gives_no_number(value: float | list[float]) -> None:
    with pytest.raises(ValueError, match=r"'task' returned .*; it must return (finite losses|a list of losses)"):
        score(tiny_llama(), LossObjective("task", lambda model: value))
