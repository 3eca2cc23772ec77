"""Boxes of merges: what every space owes, and what is particular to each."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from transformers import LlamaConfig

from hf_warmscale.architecture import describe
from hf_warmscale.merging.combine import CheckpointWeights
from hf_warmscale.merging.search.spaces import (
    AdapterSpace,
    GroupSpace,
    PairSpace,
    Range,
    SimplexSpace,
    Space,
    TrajectorySpace,
)
from hf_warmscale.merging.weights import lawa_weights, one_hot_weights, uniform_weights

LLAMA = LlamaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)
SPACES: dict[str, tuple[Space, int]] = {
    "pair": (PairSpace(alpha=0.0), 2),
    "trajectory": (TrajectorySpace(6), 6),
    "simplex": (SimplexSpace(4), 4),
    "groups": (GroupSpace(describe(LLAMA), 3), 3),
    "lora": (AdapterSpace(3), 3),
}


def every(weights: CheckpointWeights) -> list[tuple[float, ...]]:
    """The weights of every parameter, or the one set that all share."""
    if isinstance(weights, Mapping):
        return [tuple(each) for each in weights.values()]
    return [tuple(weights)]


@pytest.mark.parametrize("kind", SPACES)
class TestContract:
    def test_weights_of_a_point_sum_to_one(self, kind: str) -> None:
        space, count = SPACES[kind]
        rng = np.random.default_rng(0)
        for _ in range(20):
            point = {name: side.low + rng.random() * (side.high - side.low) for name, side in space.ranges.items()}
            for each in every(space.weights(point)):
                assert len(each) == count
                assert min(each) >= -1e-12
                assert kind == "lora" or sum(each) == pytest.approx(1.0)

    def test_the_initial_points_that_it_holds_come_back(self, kind: str) -> None:
        space, count = SPACES[kind]
        found = 0
        for start in [
            *(one_hot_weights(count, index) for index in range(count)),
            uniform_weights(count),
            lawa_weights(count),
        ]:
            point = space.point(start)
            if point is None:
                continue
            found += 1
            assert point.keys() == space.ranges.keys()
            assert all(space.ranges[name].low <= value <= space.ranges[name].high for name, value in point.items())
            for each in every(space.weights(point)):
                assert each == pytest.approx(start, abs=1e-9)
        assert found >= 3


def test_a_pair_may_go_beyond_the_later() -> None:
    assert PairSpace(beyond=1.5).weights({"lambda": 1.5}) == (-0.5, 1.5)
    assert PairSpace().point((1.0, 0.0)) is None  # the earlier alone lies below alpha


def test_a_trajectory_holds_averages_of_the_latest_only() -> None:
    space = TrajectorySpace(4)
    assert space.point((0.0, 0.5, 0.5, 0.0)) is None
    assert space.point((0.1, 0.2, 0.3, 0.4)) is None
    assert space.point((0.0, 0.0, 0.5, 0.5)) == {"window": 2.0, "exponent": 1.0}


def test_groups_follow_component_and_depth() -> None:
    space = GroupSpace(describe(LLAMA), 2)
    point = dict.fromkeys(space.ranges, 0.0) | {"mlp.0.stick_0": 1.0, "embedding.0.stick_0": 0.25}
    weights = space.weights(point)
    assert [weights[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(3)] == [(1, 0), (0.5, 0.5), (0, 1)]
    assert weights["model.embed_tokens.weight"] == pytest.approx((0.25, 0.75))
    assert weights["model.layers.0.self_attn.q_proj.weight"] == pytest.approx((0.0, 1.0))
    assert {name.split(".")[0] for name in space.ranges} == {"embedding", "attention", "mlp", "norm"}
    assert sum(name.startswith("embedding") for name in space.ranges) == 1


def test_a_box_without_extent_is_refused() -> None:
    for low, high in ((1.0, 1.0), (0.9, 0.5), (0.0, math.nan), (0.0, math.inf)):
        with pytest.raises(ValueError, match="the second must be the larger"):
            Range(low, high)
    with pytest.raises(ValueError, match="knots is 0"):
        GroupSpace(describe(LLAMA), 2, knots=0)


def test_the_unit_cube() -> None:
    assert Range(2.0, 4.0).unit(3.0) == 0.5
    assert Range(0.25, 4.0, log=True).unit(1.0) == pytest.approx(0.5)


@pytest.mark.parametrize("side", [Range(2.0, 4.0), Range(0.25, 4.0, log=True)])
def test_a_side_gives_back_its_values(side: Range) -> None:
    assert [side.unit(side.value(unit)) for unit in (0.0, 0.3, 1.0)] == pytest.approx([0.0, 0.3, 1.0])
