"""Safetensors in, safetensors out: lazy, streamed, bounded memory, atomic."""

from hf_warmscale.checkpoints.conversion import skeleton
from hf_warmscale.checkpoints.model_weights import ModelWeights, ModelWriter
from hf_warmscale.checkpoints.reader import Checkpoint, open_checkpoint
from hf_warmscale.checkpoints.run_folder import (
    RunFolder,
    checkpoint_step,
    logged,
    logged_names,
    read_stage,
    read_trainer_state,
    run_checkpoints,
    total_tokens,
)
from hf_warmscale.checkpoints.saving import copy_side_files, save_model
from hf_warmscale.checkpoints.source import source_identity
from hf_warmscale.checkpoints.staging import (
    explained_full_disk,
    refuse_existing,
    staged_directory,
    write_json,
    write_text,
)
from hf_warmscale.checkpoints.tensors import TensorSpec, content_hash, refuse_non_finite
from hf_warmscale.checkpoints.tokenizers import (
    TokenizerComparison,
    compare_tokenizers,
    find_tokenizer,
    load_tokenizer,
    require_one_language,
    shared_ids,
)
from hf_warmscale.checkpoints.writer import CheckpointWriter

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "ModelWeights",
    "ModelWriter",
    "RunFolder",
    "TensorSpec",
    "TokenizerComparison",
    "checkpoint_step",
    "compare_tokenizers",
    "content_hash",
    "copy_side_files",
    "explained_full_disk",
    "find_tokenizer",
    "load_tokenizer",
    "logged",
    "logged_names",
    "open_checkpoint",
    "read_stage",
    "read_trainer_state",
    "refuse_existing",
    "refuse_non_finite",
    "require_one_language",
    "run_checkpoints",
    "save_model",
    "shared_ids",
    "skeleton",
    "source_identity",
    "staged_directory",
    "total_tokens",
    "write_json",
    "write_text",
]
