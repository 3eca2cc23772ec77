"""Save a live model with its tokenizer, generation config and receipts, completely or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints.files import SIDE_FILES
from hf_warmscale.staging import staged_directory, write_json

GENERATION_FILE = "generation_config.json"

SAMPLING = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
"""Settings of a generation config that only apply with `do_sample`."""


def save_model(
    model: PreTrainedModel,
    output: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    side_files: Path | None = None,
    receipts: Mapping[str, Mapping[str, Any]] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Save a live model so that `output` holds all of it or does not exist.

    Args:
        model (`PreTrainedModel`): the model, with its generation config.
        output (`str` or `PathLike`): a new or empty folder.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): saved beside it.
        side_files (`Path`, *optional*): a model folder whose tokenizer and generation config are carried over.
        receipts (`Mapping[str, Mapping]`, *optional*): JSON files to add, by file name.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.

    Raises:
        ValueError: if `output` is not empty.
        OSError: if the disk is full or the folder cannot be written.

    Example:
        >>> save_model(model, "grown", tokenizer=tokenizer, receipts={"growth_receipt.json": model.growth_receipt})
    """
    with staged_directory(output) as folder:
        if side_files is not None:
            copy_side_files(side_files, folder)
        if model.generation_config is not None:
            unset_unused_sampling(model.generation_config)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        for name, content in (receipts or {}).items():
            write_json(folder / name, content)


def unset_unused_sampling(generation: GenerationConfig) -> None:
    """Unset sampling settings that have no effect, in place, where transformers would refuse to save them.

    Published models have `do_sample: false` beside a `temperature`: it loads, but `save_pretrained` raises.
    """
    try:
        generation.validate(strict=True)
    except ValueError:
        if not generation.do_sample:
            generation.update(**dict.fromkeys(SAMPLING))


def copy_side_files(source: Path, folder: Path) -> list[str]:
    """Copy the tokenizer, the chat templates and the generation config of a model folder; return their names.

    Weights, config, card, optimizer state and code stay behind. Of a generation config that transformers loads and
    refuses to save again, the settings without effect stay behind too.

    Args:
        source (`Path`): a model folder; links in it are followed.
        folder (`Path`): an existing folder.

    Example:

    ```python
    >>> Path("beside").mkdir()
    >>> copy_side_files(Path("small"), Path("beside"))
    ['generation_config.json', 'tokenizer.json', 'tokenizer_config.json']
    ```
    """
    copied = []
    for path in sorted(path for pattern in SIDE_FILES for path in source.glob(pattern) if path.is_file()):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        if path.name == GENERATION_FILE:
            _make_savable(target)
        copied.append(str(path.relative_to(source)))
    return copied


def _make_savable(path: Path) -> None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        GenerationConfig.from_dict(values).validate(strict=True)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError):  # damaged: whoever loads it is told
        return
    except ValueError:
        if not values.get("do_sample"):
            write_json(path, {name: value for name, value in values.items() if name not in SAMPLING})
