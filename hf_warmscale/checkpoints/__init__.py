"""Safetensors in, safetensors out: lazy, streamed, bounded memory, atomic."""

from hf_warmscale.checkpoints.conversion import skeleton
from hf_warmscale.checkpoints.model_weights import ModelWeights, ModelWriter
from hf_warmscale.checkpoints.reader import Checkpoint, open_checkpoint
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
from hf_warmscale.checkpoints.writer import CheckpointWriter

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "ModelWeights",
    "ModelWriter",
    "TensorSpec",
    "content_hash",
    "copy_side_files",
    "explained_full_disk",
    "open_checkpoint",
    "refuse_existing",
    "refuse_non_finite",
    "save_model",
    "skeleton",
    "source_identity",
    "staged_directory",
    "write_json",
    "write_text",
]
