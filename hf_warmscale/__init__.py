"""Grow, continue and merge pretrained language models.

Names are loaded when they are used: `import hf_warmscale` imports neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` does it
    from hf_warmscale.architecture import describe
    from hf_warmscale.compression import MagnitudePruningCallback, compression_frontier, shrink_to_budget
    from hf_warmscale.decoding import EmulatedFineTuningConfig, EmulatedFineTuningForCausalLM, UncertaintyRouter
    from hf_warmscale.evaluation import document_nll
    from hf_warmscale.hub import push_to_hub
    from hf_warmscale.merging import merge_checkpoints, search_merge
    from hf_warmscale.mup import MupConfig, MupForCausalLM, fold_multipliers, mup_param_groups, mup_table
    from hf_warmscale.resize import (
        extend_tokenizer,
        freeze_old_blocks,
        grow_adapter,
        grow_checkpoint,
        grow_from_pretrained,
        grow_optimizer_state,
        grow_vocabulary,
        shrink_checkpoint,
        shrink_from_pretrained,
    )
    from hf_warmscale.scaling import fit_scaling_law, plan, predict_loss
    from hf_warmscale.training import (
        ContinualTrainer,
        ContinualTrainingArguments,
        DistillationTrainer,
        HealingTrainer,
        ReplayMixture,
        Stage,
        TeacherCache,
        anneal_stage,
        apply_majority_kernels,
        average_run,
        fold_majority_kernels,
        get_schedule,
    )

__version__ = "0.1.0"

__all__ = [
    "ContinualTrainer",
    "ContinualTrainingArguments",
    "DistillationTrainer",
    "EmulatedFineTuningConfig",
    "EmulatedFineTuningForCausalLM",
    "HealingTrainer",
    "MagnitudePruningCallback",
    "MupConfig",
    "MupForCausalLM",
    "ReplayMixture",
    "Stage",
    "TeacherCache",
    "UncertaintyRouter",
    "__version__",
    "anneal_stage",
    "apply_majority_kernels",
    "average_run",
    "compression_frontier",
    "describe",
    "document_nll",
    "extend_tokenizer",
    "fit_scaling_law",
    "fold_majority_kernels",
    "fold_multipliers",
    "freeze_old_blocks",
    "get_schedule",
    "grow_adapter",
    "grow_checkpoint",
    "grow_from_pretrained",
    "grow_optimizer_state",
    "grow_vocabulary",
    "merge_checkpoints",
    "mup_param_groups",
    "mup_table",
    "plan",
    "predict_loss",
    "push_to_hub",
    "search_merge",
    "shrink_checkpoint",
    "shrink_from_pretrained",
    "shrink_to_budget",
]

_HOME = {
    "ContinualTrainer": "training",
    "ContinualTrainingArguments": "training",
    "DistillationTrainer": "training",
    "EmulatedFineTuningConfig": "decoding",
    "EmulatedFineTuningForCausalLM": "decoding",
    "HealingTrainer": "training",
    "MagnitudePruningCallback": "compression",
    "MupConfig": "mup",
    "MupForCausalLM": "mup",
    "ReplayMixture": "training",
    "Stage": "training",
    "TeacherCache": "training",
    "UncertaintyRouter": "decoding",
    "anneal_stage": "training",
    "apply_majority_kernels": "training",
    "average_run": "training",
    "compression_frontier": "compression",
    "describe": "architecture",
    "document_nll": "evaluation",
    "extend_tokenizer": "resize",
    "fit_scaling_law": "scaling",
    "fold_majority_kernels": "training",
    "fold_multipliers": "mup",
    "freeze_old_blocks": "resize",
    "get_schedule": "training",
    "grow_adapter": "resize",
    "grow_checkpoint": "resize",
    "grow_from_pretrained": "resize",
    "grow_optimizer_state": "resize",
    "grow_vocabulary": "resize",
    "merge_checkpoints": "merging",
    "mup_param_groups": "mup",
    "mup_table": "mup",
    "plan": "scaling",
    "predict_loss": "scaling",
    "push_to_hub": "hub",
    "search_merge": "merging",
    "shrink_checkpoint": "resize",
    "shrink_from_pretrained": "resize",
    "shrink_to_budget": "compression",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
