"""Configs and tokenizers by the name that was typed, with errors that say what is wrong with it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def load_config(name: str) -> "PreTrainedConfig":
    """Load the config of a model.

    Args:
        name (`str`): a folder, a JSON file or a Hub id.

    Raises:
        FileNotFoundError: if there is no such model, or it cannot be fetched.
        ValueError: if the config cannot be used.
    """
    from transformers import AutoConfig, PreTrainedConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _explained(name, "config", error) from error
    return config


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer.

    Args:
        name (`str`): a folder or a Hub id.

    Raises:
        FileNotFoundError: if there is no such tokenizer, or it cannot be fetched.
        ValueError: if the folder holds none that can be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _explained(name, "tokenizer", error) from error
    return tokenizer


def _explained(name: str, what: str, error: Exception) -> ValueError | FileNotFoundError:
    if Path(name).exists():
        return ValueError(f"{name} holds no {what} that transformers can load; name another folder or a Hub id.")
    return FileNotFoundError(f"{name} is neither a folder nor a {what} of the Hub that can be reached.")
