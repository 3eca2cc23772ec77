"""The tokens on which importance is measured."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_warmscale.checkpoints import find_tokenizer
from hf_warmscale.resize.growing.verify import LONGEST_PROBE, longest_input, probe_tokens

Calibration = Sequence[str] | Tensor
"""Texts, or token ids `[batch, tokens]`."""


def calibration_tokens(model: PreTrainedModel, calibration: Calibration | None) -> Tensor:
    """Return token ids `[batch, tokens]`.

    Args:
        model (`PreTrainedModel`): the tokenizer for texts is looked for where this model was loaded from.
        calibration (`Sequence[str]` or `Tensor`, *optional*): texts or token ids; a short built-in text by default.

    Raises:
        ValueError: if there is no text, no tokenizer for it, or a token that the model does not have.
    """
    known: int = model.config.vocab_size
    if calibration is None:
        return probe_tokens(model, known)
    if isinstance(calibration, Tensor):
        return _checked(calibration, known)
    if not any(calibration):
        raise ValueError("The calibration has no text; give at least one.")
    return _tokenized(calibration, model, known)


def _checked(tokens: Tensor, known: int) -> Tensor:
    if tokens.dim() != 2 or tokens.is_floating_point() or not tokens.numel():
        raise ValueError(
            f"The calibration is {tokens.dtype} of shape {tuple(tokens.shape)}; give integer token ids of shape "
            "[batch, tokens]."
        )
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < known:
        raise ValueError(
            f"The calibration has the token {int(tokens.max())}, but the model has {known} tokens; use its tokenizer."
        )
    return tokens


def _tokenized(texts: Sequence[str], model: PreTrainedModel, known: int) -> Tensor:
    tokenizer = find_tokenizer(model.config.name_or_path)
    if tokenizer is None:
        raise ValueError(
            f"{model.config.name_or_path or 'The model'} has no tokenizer that transformers can load; give the "
            "calibration as token ids."
        )
    longest = longest_input(model) or LONGEST_PROBE
    ids = [token for text in texts for token in tokenizer(text, verbose=False)["input_ids"]]
    if not ids:
        raise ValueError("The calibration texts have no token; give at least one with words.")
    if max(ids) >= known:
        raise ValueError(
            f"The tokenizer gives the token {max(ids)}, but the model has {known} tokens; give the calibration as "
            "token ids, or use the tokenizer of the model."
        )
    # Rows of equal length, without padding, which would be measured like text.
    length = min(longest, LONGEST_PROBE, len(ids))
    return torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
