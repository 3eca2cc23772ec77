"""Prove on a tiny model whether the documents of a packed batch can see one another.

Packed rows hold several documents, told apart by `position_ids` that restart at 0. Whether a model keeps them apart
depends on its family (learned positions, recurrent layers, masks of its own) and on the attention implementation. So
nothing is assumed: a model of the same class and structure, with tiny sizes and random weights, must give every
document of a packed batch the logits that it gives to the document alone.
"""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture.fields import find_field
from hf_warmscale.architecture.model_map import Axis
from hf_warmscale.architecture.precision import StayInFloat64
from hf_warmscale.architecture.proof import randomize
from hf_warmscale.architecture.tiny import FIRST_ORDINARY_TOKEN, TINY, axes_of, tiny_config, unpartitioned
from hf_warmscale.compat.transformers import short_scans
from hf_warmscale.mup import is_mup
from hf_warmscale.training.data.stand_ins import stand_in_for

Layout = Literal["rows", "end_to_end"]
"""Packed rows stacked, `[rows, tokens]`, or laid end to end, `[1, rows * tokens]`."""

LAYOUTS: tuple[Layout, ...] = ("end_to_end", "rows")
DOCUMENTS = ((7, 9), (10, 6))
"""Tokens of the documents in each of two rows: boundaries at different places, every document seen by another."""

MAX_PARAMETERS = 100_000_000
"""Largest "tiny" model that a proof may build: some sizes (embeddings per layer) are out of reach of the config."""

TOLERANCE = 1e-6
"""Largest change of a logit, relative to the largest logit: rounding leaves 1e-15, a leak 1e-3 or more."""


@dataclass(frozen=True)
class Separation:
    """The result of a proof.

    Args:
        family (`str`): the `model_type`.
        attention (`str`): the attention implementation.
        changes (`Mapping[Layout, float]`): the largest change of a logit, relative to the largest logit, between a
            document in a packed batch and alone.
        failures (`Mapping[Layout, str]`): what the model raised, if it cannot run on a layout at all.
        unproved (`str`, *optional*): why no tiny model could be made, so that nothing is known and no layout is safe.
    """

    family: str
    attention: str
    changes: Mapping[Layout, float] = field(default_factory=dict)
    failures: Mapping[Layout, str] = field(default_factory=dict)
    unproved: str | None = None

    def holds_for(self, layout: Layout) -> bool:
        """Tell whether documents stay apart in batches of this layout."""
        return self.changes.get(layout, 1.0) < TOLERANCE

    @property
    def layout(self) -> Layout | None:
        """The layout to use: stacked rows where they are safe, else end to end, else none."""
        return next((layout for layout in ("rows", "end_to_end") if self.holds_for(layout)), None)

    def reason(self) -> str:
        """Return why no layout is safe, as a clause."""
        if self.unproved is not None:
            return f"that they keep documents apart could not be proved on a tiny model ({self.unproved})"
        if self.changes:
            change = min(self.changes.values())
            return f"another document in the row changes the logits by {change:.1g} of the largest"
        return f"it cannot run on them ({next(iter(self.failures.values()), 'no layout was tried')})"


_proved: dict[tuple[type, str, str], Separation] = {}


def separation_of(model: nn.Module | None) -> Separation | None:
    """Prove whether the documents of a packed batch stay apart in this model. A result is kept for the process.

    For flash and flex attention a function stands in that gets the same arguments, see `stand_ins`: the proof covers
    what the model passes on to them.

    Args:
        model (`nn.Module`): of any size, on any device and under any engine; it is not run. Adapters may be on it.

    Returns:
        `Separation`: without a safe layout where no tiny model of the family can be made. `None` for a module that is
            not a model of transformers.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        return None
    model_class: type[PreTrainedModel] = type(model)
    config, attention = model.config, str(model.config._attn_implementation)
    if is_mup(config):  # its multipliers belong to its sizes, and have no part in this
        model_class = GraniteForCausalLM
        config = GraniteConfig.from_dict({key: value for key, value in config.to_dict().items() if key != "mup"})
    # The whole config, not the family alone: layer types, windows and position embeddings are fields of it.
    key = (model_class, attention, config.to_json_string(use_diff=False))
    if key not in _proved:
        with warnings.catch_warnings():  # what the family's code says of a tiny model is not for the user
            warnings.simplefilter("ignore")
            _proved[key] = prove(model_class, config, attention)
    return _proved[key]


def prove(model_class: type[PreTrainedModel], config: PreTrainedConfig, attention: str) -> Separation:
    """Prove the separation of documents for a model class, a config and an attention implementation."""
    changes: dict[Layout, float] = {}
    failures: dict[Layout, str] = {}
    layout: Layout
    with short_scans(_text_config(config)):
        try:
            model = tiny_model(model_class, config, attention)
        except Exception as error:  # whatever the family's own code raises
            return Separation(str(config.model_type), attention, unproved=_one_line(error))
        for layout in LAYOUTS:
            try:
                changes[layout] = largest_change(model, layout)
            except Exception as error:  # as above
                failures[layout] = _one_line(error)
    return Separation(str(config.model_type), attention, changes, failures)


def tiny_model(model_class: type[PreTrainedModel], config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """Build a small random model of the same structure that runs; every layer stays, for layers may differ in kind."""
    sizes = tiny_sizes(_text_config(config))
    # Some families take it for granted that heads fill the hidden size.
    for attempt in (sizes, {**sizes, Axis.HIDDEN: TINY[Axis.HEADS] * TINY[Axis.HEAD_DIM]}):
        try:
            model = _built(model_class, shrunk(config, attempt), attention)
            with torch.no_grad(), StayInFloat64():
                _logits(model, input_ids=torch.full((1, DOCUMENTS[0][0]), FIRST_ORDINARY_TOKEN))
        except Exception as error:  # whatever the family's own code raises
            failure = error
        else:
            return model
    raise failure


def shrunk(config: PreTrainedConfig, sizes: Mapping[Axis, int]) -> PreTrainedConfig:
    """Return a config at these sizes; of a composite one the text model has them, and every other part one layer."""
    text = _text_config(config)
    if text is config:
        return tiny_config(config, sizes)
    composite = deepcopy(config)
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is text:
            setattr(composite, name, tiny_config(part, sizes))
        elif isinstance(part, PreTrainedConfig) and (layers := find_field(part, Axis.LAYERS)) is not None:
            setattr(getattr(composite, name), layers, 1)
    return composite


def _text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    text = getattr(config, "text_config", None)
    return text if isinstance(text, PreTrainedConfig) else config


def _built(model_class: type[PreTrainedModel], config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    config._attn_implementation = stand_in_for(attention)
    config._experts_implementation = "eager"
    # The proof must leave the caller's random state as it was, or training would depend on whether it ran.
    with torch.random.fork_rng(devices=[]), unpartitioned():
        with torch.device("meta"):
            size = model_class(config).num_parameters()
        if size > MAX_PARAMETERS:
            raise ValueError(f"the smallest model that its config allows has {size:.1e} parameters")
    with torch.random.fork_rng(devices=[]), unpartitioned(), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        model = randomize(model_class(config))
    model.eval()
    return model


def tiny_sizes(config: PreTrainedConfig) -> dict[Axis, int]:
    """Return the small size of every axis that the config can set."""
    sizes = {axis: TINY[axis] for axis in TINY if axis in axes_of(config)}
    heads, kv_heads = (getattr(config, find_field(config, axis) or "", None) for axis in (Axis.HEADS, Axis.KV_HEADS))
    # Where the real model has as many key-value heads as heads, the tiny one has too.
    if Axis.KV_HEADS in sizes and kv_heads in (heads, None):
        sizes[Axis.KV_HEADS] = sizes[Axis.HEADS]
    return sizes


@torch.no_grad()
def largest_change(model: PreTrainedModel, layout: Layout) -> float:
    """Return the largest change of a logit between a document in a packed batch and alone, relative to the largest."""
    vocab_size = len(model.get_input_embeddings().get_parameter("weight"))
    generator = torch.Generator().manual_seed(1)
    rows = [
        [torch.randint(FIRST_ORDINARY_TOKEN, vocab_size, (1, length), generator=generator) for length in lengths]
        for lengths in DOCUMENTS
    ]
    if layout == "end_to_end":
        rows = [[document for row in rows for document in row]]
    positions = torch.stack([torch.cat([torch.arange(part.shape[1]) for part in row]) for row in rows])
    with StayInFloat64():
        packed = _logits(model, input_ids=torch.cat([torch.cat(row, dim=1) for row in rows]), position_ids=positions)
        changes = [
            (packed[number, stop - part.shape[1] : stop] - _logits(model, input_ids=part)[0]).abs().max()
            for number, row in enumerate(rows)
            for part, stop in zip(row, accumulate(part.shape[1] for part in row), strict=True)
        ]
    change = float(max(changes) / packed.abs().max())
    # NaN compares false with everything and would be lost in a maximum; it counts as a leak.
    return change if change == change else 1.0


def _logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
