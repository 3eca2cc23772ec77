"""`EmulatedFineTuningConfig`: which models are used together, and how much each of them counts."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig


class EmulatedFineTuningConfig(PreTrainedConfig):
    """Configure emulated fine-tuning; `weights`, `beta` and `upscale_top_p` may be changed at any time.

    Args:
        members (`dict`, *optional*): where each model is loaded from: `base` and `reference` are entries, `tuned` is a
            list of them. An entry has a `name_or_path`, and may have a `revision` and an `adapter` (a subfolder). A
            reference of `None` is the first tuned model with its adapter off.
        weights (`list[float]`, *optional*): of the tuned models; by default equal shares of 1.
        beta (`float`): of the difference between the large base and the small one.
        upscale_top_p (`float`, *optional*): restricts that difference to a nucleus; above 0 and at most 1.
        text_config (`PreTrainedConfig`, *optional*): set by the model and never saved: the base's config, with the
            vocabulary and the window that all members share.

    Example:

    ```python
    >>> model.config.weights = [0.3, 0.7]
    >>> model.config.beta = 1.25
    ```
    """

    model_type = "emulated_fine_tuning"

    members: dict[str, Any] | None = None
    weights: list[float] | None = None
    beta: float = 1.0
    upscale_top_p: float | None = None
    text_config: Any = None

    def checked_weights(self, num_tuned: int) -> list[float]:
        """Return the weights of so many tuned models, after checking all settings.

        Raises:
            ValueError: if a setting is not a finite number or out of range, or the weights do not match.
        """
        weights = [1.0 / num_tuned] * num_tuned if self.weights is None else list(self.weights)
        if len(weights) != num_tuned:
            raise ValueError(
                f"weights has {len(weights)} numbers for {num_tuned} tuned model(s); give one weight per tuned model."
            )
        _refuse_non_finite("weights", weights)
        _refuse_non_finite("beta", [self.beta])
        if self.upscale_top_p is not None and not 0 < self.upscale_top_p <= 1:
            raise ValueError(
                f"upscale_top_p is {self.upscale_top_p}; give a probability above 0 and at most 1, or None."
            )
        return weights

    def shared_with(self, base: PreTrainedConfig, *, vocab_size: int, window: int | None) -> None:
        """Make `get_text_config` answer for all members: it decides lengths, caches and whether an assistant fits."""
        text_config = copy.deepcopy(base)
        text_config.vocab_size = vocab_size
        if window is not None:
            text_config.max_position_embeddings = window
        self.text_config = text_config

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain values; the members' own configs lie with the members."""
        content = super().to_dict()
        content.pop("text_config", None)
        return content


def _refuse_non_finite(name: str, values: Sequence[float]) -> None:
    for value in values:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} holds {value!r}; give finite numbers.")
