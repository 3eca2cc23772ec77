"""Continual pretraining: schedules, mixtures with replay, stages, and the trainer that runs them."""

from hf_warmscale.training.arguments import ContinualArguments, ContinualTrainingArguments
from hf_warmscale.training.averaging import AverageCheckpoints, average_run, average_weights
from hf_warmscale.training.branching import anneal_stage, constant_checkpoints
from hf_warmscale.training.data.mixture import ReplayMixture, SeenRows
from hf_warmscale.training.data.packing import load_packed, pack, stream_packed
from hf_warmscale.training.data.streaming import StreamedRows
from hf_warmscale.training.distillation import DistillationTrainer, HealingTrainer, TeacherCache
from hf_warmscale.training.majority_kernels import (
    apply_majority_kernels,
    fold_majority_kernels,
    majority_state_dict,
)
from hf_warmscale.training.schedules.lr_scheduler import StageLR, plot_schedule
from hf_warmscale.training.schedules.schedule import Schedule, get_schedule
from hf_warmscale.training.stage import Progress, Stage, StageRecord, seen_rows
from hf_warmscale.training.trainer import ContinualMixin, ContinualTrainer

__all__ = [
    "AverageCheckpoints",
    "ContinualArguments",
    "ContinualMixin",
    "ContinualTrainer",
    "ContinualTrainingArguments",
    "DistillationTrainer",
    "HealingTrainer",
    "Progress",
    "ReplayMixture",
    "Schedule",
    "SeenRows",
    "Stage",
    "StageLR",
    "StageRecord",
    "StreamedRows",
    "TeacherCache",
    "anneal_stage",
    "apply_majority_kernels",
    "average_run",
    "average_weights",
    "constant_checkpoints",
    "fold_majority_kernels",
    "get_schedule",
    "load_packed",
    "majority_state_dict",
    "pack",
    "plot_schedule",
    "seen_rows",
    "stream_packed",
]
