"""Grow, continue and merge pretrained language models.

Names are loaded when they are used: `import hf_warmscale` imports neither torch nor transformers.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "describe": "architecture",
    "document_nll": "evaluation",
    "grow_from_pretrained": "resize",
    "grow_checkpoint": "resize",
    "shrink_from_pretrained": "resize",
    "grow_optimizer_state": "resize",
    "MupConfig": "mup",
    "MupForCausalLM": "mup",
    "mup_param_groups": "mup",
    "mup_table": "mup",
    "fold_multipliers": "mup",
    "ContinualTrainer": "training",
    "ContinualTrainingArguments": "training",
    "ReplayMixture": "training",
    "Stage": "training",
    "get_schedule": "training",
    "search_merge": "merging",
    "merge_checkpoints": "merging",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
