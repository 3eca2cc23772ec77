"""The names of the files in a model folder, in one place."""

from pathlib import Path

from transformers.tokenization_utils_base import ADDED_TOKENS_FILE, SPECIAL_TOKENS_MAP_FILE
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import CHAT_TEMPLATE_DIR
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from hf_warmscale.checkpoints.run_folder import run_checkpoints

CONFIG_FILE: str = CONFIG_NAME
SINGLE_FILE: str = SAFE_WEIGHTS_NAME
INDEX_FILE: str = SAFE_WEIGHTS_INDEX_NAME
PICKLED_FILE: str = WEIGHTS_NAME
PICKLED_INDEX_FILE: str = WEIGHTS_INDEX_NAME
ADAPTER_FILE: str = ADAPTER_SAFE_WEIGHTS_NAME
ADAPTER_CONFIG: str = ADAPTER_CONFIG_NAME

CHAT_TEMPLATES = f"{CHAT_TEMPLATE_DIR}/*.jinja"
"""The additional chat templates of a tokenizer."""

SIDE_FILES = (
    GENERATION_CONFIG_NAME,
    "tokenizer*",
    SPECIAL_TOKENS_MAP_FILE,
    ADDED_TOKENS_FILE,
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    CHAT_TEMPLATES,
)
"""Tokenizer, chat templates and generation config: they stay valid when the weights change."""

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""What is downloaded of a Hub repository before its weights, and what is pushed beside them."""


def folder_kind(folder: Path) -> str:
    """Return what a folder without a model is, as the end of a sentence that says what to do."""
    if (folder / ADAPTER_CONFIG).is_file():
        return "it holds an adapter; merge it into its base model with merge_and_unload and save that"
    converted = next(folder.glob("*.gguf"), None)
    if converted is not None:
        return f"it holds {converted.name}, a file for llama.cpp; name the model that it was converted from"
    saved = run_checkpoints(folder)
    if saved:
        return f"it is the folder of a training run; name one of its checkpoints, such as {saved[-1]}"
    return "it is not a model folder" if any(folder.iterdir()) else "the folder is empty; check its name"
