"""Safetensors in, safetensors out: lazy, streamed, bounded memory, atomic."""

from hf_warmscale.checkpoints.conversion import skeleton
from hf_warmscale.checkpoints.loading import load_config, load_model, require_model
from hf_warmscale.checkpoints.model_weights import ModelWeights, ModelWriter
from hf_warmscale.checkpoints.reader import Checkpoint, open_checkpoint
from hf_warmscale.checkpoints.receipts import FORMAT_VERSION, Receipt, check_format_version, public_name
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
from hf_warmscale.staging import (
    explained_full_disk,
    refuse_existing,
    staged_directory,
    write_json,
    write_text,
)

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointWriter",
    "ModelWeights",
    "ModelWriter",
    "Receipt",
    "RunFolder",
    "TensorSpec",
    "TokenizerComparison",
    "check_format_version",
    "checkpoint_step",
    "compare_tokenizers",
    "content_hash",
    "copy_side_files",
    "explained_full_disk",
    "find_tokenizer",
    "load_config",
    "load_model",
    "load_tokenizer",
    "logged",
    "logged_names",
    "open_checkpoint",
    "public_name",
    "read_stage",
    "read_trainer_state",
    "refuse_existing",
    "refuse_non_finite",
    "require_model",
    "require_one_language",
    "run_checkpoints",
    "save_model",
    "shared_ids",
    "skeleton",
    "staged_directory",
    "total_tokens",
    "write_json",
    "write_text",
]
