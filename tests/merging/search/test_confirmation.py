"""Starting points, the pick of the winner, the verdict and the look along a line, on numbers."""

from collections.abc import Callable

import numpy as np
import pytest
from transformers import PreTrainedModel

from hf_warmscale.evaluation.scores import FloatArray
from hf_warmscale.merging.combine import CheckpointWeights
from hf_warmscale.merging.objectives.objective import LossObjective
from hf_warmscale.merging.objectives.public_benchmarks import refuse_public_benchmark
from hf_warmscale.merging.search.confirmation import confirm_winner, pick
from hf_warmscale.merging.search.evaluator import Evaluator
from hf_warmscale.merging.search.initial_points import fixed_initial_points, label_of, members_of, next_initial_point
from hf_warmscale.merging.search.mergeability import barrier_of, look_along
from hf_warmscale.merging.search.spaces import PairSpace, SimplexSpace, TrajectorySpace
from tests.evaluation.tiny import tiny_llama

DIFFICULTY = np.random.default_rng(0).normal(3.0, 1.0, size=60)
NOISE = np.random.default_rng(1).normal(0.0, 0.05, size=60)


class Numbers:
    """A combiner whose model is the numbers themselves."""

    def __init__(self) -> None:
        self.model: PreTrainedModel = tiny_llama()
        self.weights: CheckpointWeights = ()

    def combine(self, weights: CheckpointWeights) -> None:
        self.weights = weights


def evaluator(loss: Callable[[CheckpointWeights], FloatArray], limits: dict[str, float] | None = None) -> Evaluator:
    numbers = Numbers()
    domains = {"held-out": LossObjective("held-out", lambda _: loss(numbers.weights).tolist())}
    if limits:
        domains["old"] = LossObjective("old", lambda _: (1.0 - 0.1 * np.array(numbers.weights)[-1:]).tolist() * 4)
    return Evaluator(numbers, domains, limits or {}, (0.0, 1.0))


def gain_in_the_middle(gain: float) -> Callable[[CheckpointWeights], FloatArray]:
    """The average of two equal checkpoints is better by `gain`, and noisily so from document to document."""

    def loss(weights: CheckpointWeights) -> FloatArray:
        assert isinstance(weights, tuple)
        merged = 4.0 * float(weights[0]) * float(weights[1])
        losses: FloatArray = DIFFICULTY - merged * (gain + NOISE)
        return losses

    return loss


def confirm(
    loss: Callable[[CheckpointWeights], FloatArray], winner: tuple[float, ...], **limits: float
) -> tuple[bool, str]:
    found = confirm_winner(evaluator(loss, limits), winner, 1, 2, tolerance=1e-4, confidence=0.95)
    assert found.weights == (winner if found.accepted else (0.0, 1.0))
    return found.accepted, found.verdict


def test_a_real_gain_is_accepted() -> None:
    accepted, verdict = confirm(gain_in_the_middle(0.05), (0.4, 0.6))
    assert accepted
    assert verdict.startswith("Merge: better than checkpoint 2 of 2 (-0.04")
    assert "no better than the uniform average" in verdict


def test_a_gain_within_the_noise_is_not() -> None:
    accepted, verdict = confirm(gain_in_the_middle(0.0), (0.4, 0.6))
    assert not accepted
    assert verdict.startswith("No merge: the winner is not better than checkpoint 2 of 2 beyond chance (")


def test_a_gain_below_the_tolerance_is_none() -> None:
    """The same for every document, so the interval is a point: but 5e-5 nats are nothing."""

    def loss(weights: CheckpointWeights) -> FloatArray:
        assert isinstance(weights, tuple)
        losses: FloatArray = DIFFICULTY - 5e-5 * float(weights[0] > 0)
        return losses

    assert not confirm(loss, (0.4, 0.6))[0]


def test_a_single_checkpoint_may_win() -> None:
    accepted, verdict = confirm(gain_in_the_middle(0.05), (0.0, 1.0))
    assert not accepted
    assert verdict == "No merge: the best point of the search is checkpoint 2 of 2 itself."


def test_a_limit_that_is_broken_on_the_confirm_split() -> None:
    accepted, verdict = confirm(gain_in_the_middle(0.05), (0.4, 0.6), old=0.01)
    assert not accepted and "exceeds the limit of old" in verdict
    assert confirm(gain_in_the_middle(0.05), (0.4, 0.6), old=0.2)[0]


def test_one_number_is_no_confirmation() -> None:
    with pytest.raises(ValueError, match="confirm gives one number, which has no interval"):
        confirm(lambda weights: np.array([3.0]), (0.4, 0.6))


def test_the_posterior_mean_decides_among_the_best_three() -> None:
    values = [3.00, 2.90, 2.91, 2.92, 2.93]
    means = [2.80, 2.95, 2.93, 2.91, 2.70]
    assert pick(values, means) == 3
    assert pick([3.0], [3.0]) == 0


def test_the_order_of_the_initial_points() -> None:
    assert [label_of(members) for members in fixed_initial_points(3)] == ["2", "0+1+2", "1", "0"]
    assert [label_of(members) for members in fixed_initial_points(7)][-1] == "2+3+4+5+6"
    assert members_of("0+2") == {0, 2}


def test_initial_points_until_the_greedy_soup_is_done() -> None:
    """Losses of three checkpoints and their averages; the greedy soup asks for what is missing."""
    space = SimplexSpace(3)
    truth = {"2": 3.0, "0+1+2": 2.9, "1": 3.1, "0": 3.2, "1+2": 2.8}
    known: dict[frozenset[int], float] = {}
    asked = []
    while True:
        singles = {next(iter(members)): value for members, value in known.items() if len(members) == 1}
        start = next_initial_point(space, 3, singles=singles, known=known)
        if start is None:
            break
        asked.append(label_of(start[0]))
        known[start[0]] = truth[asked[-1]]
    assert asked == ["2", "0+1+2", "1", "0", "1+2"]


def test_initial_points_that_are_running_or_outside_are_passed_over() -> None:
    running = [frozenset([1])]
    start = next_initial_point(PairSpace(), 2, singles={}, known={}, running=running)
    assert start == (frozenset([0, 1]), {"lambda": 0.5})
    known = {frozenset([1]): 3.0, frozenset([0, 1]): 2.9}
    assert next_initial_point(PairSpace(), 2, singles={0: 3.1, 1: 3.0}, known=known) is None
    assert next_initial_point(TrajectorySpace(2), 2, singles={0: 3.1}, known=known) is None


def test_barrier() -> None:
    """B >= 0 since the ends are included; a line that sags has none."""
    assert barrier_of({0.0: 3.0, 0.5: 3.4, 1.0: 2.0}) == pytest.approx(0.9)
    assert barrier_of({0.0: 3.0, 0.5: 2.0, 1.0: 2.0}) == 0.0


def test_advice() -> None:
    sag = look_along(lambda weight: 3.0 - weight * (1 - weight), (900, 1000))
    assert sag.gain == pytest.approx(0.25) and sag.barrier == 0.0
    assert sag.decades == pytest.approx(0.0458, abs=1e-4)
    wall = look_along(lambda weight: 3.0 + weight * (1 - weight), (10, 1000))
    assert "2 decades of steps apart, are separated by a barrier of 0.25 nats" in wall.advice
    assert look_along(lambda weight: 3.0, (None, 5)).advice.endswith("its interior gains nothing.")


@pytest.mark.parametrize("name", ["gsm8k", "openai/gsm8k", "mmlu_pro", "data/HumanEval.jsonl", "ai2 ARC-Challenge"])
def test_public_benchmarks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is the public benchmark"):
        refuse_public_benchmark(name)
    refuse_public_benchmark(name, allow=True)


@pytest.mark.parametrize("name", ["english", "search logs", "raindrops", "python.validation", "marchive"])
def test_other_names_pass(name: str) -> None:
    refuse_public_benchmark(name)
