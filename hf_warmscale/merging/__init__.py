"""Merge checkpoints: with given weights, or with weights that a search finds and a held-out split confirms."""

from hf_warmscale.merging.combine import CheckpointCombiner, CheckpointWeights, Combiner
from hf_warmscale.merging.inputs import MergeInput
from hf_warmscale.merging.merge import MergeReceipt, merge_checkpoints
from hf_warmscale.merging.objectives.lm_eval_task import lm_eval_loss
from hf_warmscale.merging.objectives.public_benchmarks import refuse_public_benchmark
from hf_warmscale.merging.search.mergeability import Mergeability
from hf_warmscale.merging.search.result import MergeResult
from hf_warmscale.merging.search.search import search_merge
from hf_warmscale.merging.search.spaces import (
    AdapterSpace,
    GroupSpace,
    PairSpace,
    SimplexSpace,
    Space,
    TrajectorySpace,
)
from hf_warmscale.merging.search.sweep import AlphaSweep, sweep_alphas
from hf_warmscale.merging.sources import MergeSource
from hf_warmscale.merging.weights import (
    decay_weights,
    ema_weights,
    lawa_weights,
    pair_weights,
    power_weights,
    trajectory_weights,
    uniform_weights,
)

__all__ = [
    "AdapterSpace",
    "AlphaSweep",
    "CheckpointCombiner",
    "CheckpointWeights",
    "Combiner",
    "GroupSpace",
    "MergeInput",
    "MergeReceipt",
    "MergeResult",
    "MergeSource",
    "Mergeability",
    "PairSpace",
    "SimplexSpace",
    "Space",
    "TrajectorySpace",
    "decay_weights",
    "ema_weights",
    "lawa_weights",
    "lm_eval_loss",
    "merge_checkpoints",
    "pair_weights",
    "power_weights",
    "refuse_public_benchmark",
    "search_merge",
    "sweep_alphas",
    "trajectory_weights",
    "uniform_weights",
]
