"""Safetensors in, safetensors out: lazy, streamed, bounded memory, atomic."""

from hf_warmscale.checkpoints.staging import refuse_existing, staged_directory, write_json, write_text

__all__ = ["refuse_existing", "staged_directory", "write_json", "write_text"]
