"""Load a stored model whole, or refuse it in one sentence. Every command loads through here.

`from_pretrained` fills missing tensors with random numbers, drops unexpected ones and prints a report. Here a model is
loaded only if its files hold every tensor of its config, once, in the right shape and finite.
"""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.checkpoints.model_weights import ModelWeights, is_quantized
from hf_warmscale.checkpoints.reader import Checkpoint, open_checkpoint, read_config
from hf_warmscale.checkpoints.source import find_config
from hf_warmscale.refusals import names_as_typed


def load_config(source: str | os.PathLike[str]) -> PreTrainedConfig:
    """Load the config of a model without its weights.

    Args:
        source (`str` or `PathLike`): a folder, a JSON file, a Hub id, or a Hub id with a revision, `id@revision`.

    Raises:
        FileNotFoundError: if there is no such model, or it cannot be downloaded.
        ValueError: if the config cannot be used.

    Example:
        >>> load_config("EleutherAI/pythia-410m@step1000").hidden_size
        1024
    """
    with names_as_typed():
        return read_config(find_config(source))


def require_model(source: str | os.PathLike[str], *, finite: bool = True) -> ModelWeights:
    """Open a stored model and refuse one that is not whole.

    Args:
        source (`str` or `PathLike`): a folder, a Hub id, or a Hub id with a revision, `id@revision`.
        finite (`bool`): also read all tensors once, to refuse NaN and infinities.

    Returns:
        `ModelWeights`: its tensors by the names of the model.

    Raises:
        FileNotFoundError: if there is no such model, or a file of it is missing.
        ValueError: if it is an adapter, quantized or damaged, or if its tensors are not those of its config.

    Example:

    ```python
    >>> require_model("small").specs["model.norm.weight"].shape
    (32,)
    ```
    """
    weights = ModelWeights(open_checkpoint(source))
    if finite:
        weights.checkpoint.check_finite()
    return weights


def require_weights(source: str | os.PathLike[str]) -> Checkpoint:
    """Open a stored model, quantized or not; refuse weights that are damaged, not finite or not those of its config.

    Args:
        source (`str` or `PathLike`): a folder, a Hub id, or a Hub id with a revision, `id@revision`.

    Raises:
        FileNotFoundError: if there is no such model, or a file of it is missing.
        ValueError: naming what is wrong.
    """
    checkpoint = open_checkpoint(source)
    if not is_quantized(checkpoint):
        ModelWeights(checkpoint)
    checkpoint.check_finite()
    return checkpoint


def load_model(
    source: str | os.PathLike[str], *, dtype: torch.dtype | None = None, finite: bool = True, **options: Any
) -> PreTrainedModel:
    """Load a stored model whole; see [`require_model`] for what is refused.

    Args:
        source (`str` or `PathLike`): a folder, a Hub id, or a Hub id with a revision, `id@revision`.
        dtype (`torch.dtype`, *optional*): of the live model; by default that of its first stored tensor.
        finite (`bool`): refuse NaN and infinities.
        options (`Any`): more arguments of `from_pretrained`, such as `attn_implementation`.

    Raises:
        FileNotFoundError, ValueError: as [`require_model`].

    Example:
        >>> model = load_model("EleutherAI/pythia-410m@step1000", dtype=torch.float32)
    """
    weights = require_model(source, finite=finite)
    dtype = dtype or next(iter(weights.specs.values())).dtype
    folder: Path = weights.checkpoint.folder
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, **options
    )
    return model
