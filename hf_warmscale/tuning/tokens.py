"""Documents as the token files that a proxy task reads."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase


def write_tokens(
    train: Iterable[str],
    validation: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
) -> Path:
    """Write `train.npy` and `validation.npy`, each document followed by the end-of-text token; return the folder.

    Args:
        train (`Iterable[str]`): the documents to train on.
        validation (`Iterable[str]`): the documents that the losses of a sweep are measured on.
        tokenizer (`PreTrainedTokenizerBase`): with an `eos_token`.
        folder (`str` or `PathLike`): made if need be.

    Raises:
        ValueError: if the tokenizer has no `eos_token`, or a split has no text.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token to end a document with; set one.")
    for split, documents in {"train": train, "validation": validation}.items():
        rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in documents if text.strip()]
        if not rows:
            raise ValueError(f"There is no {split} document with any text; give some.")
        np.save(folder / f"{split}.npy", np.concatenate([np.array(row, dtype=np.uint32) for row in rows]))
    return folder
