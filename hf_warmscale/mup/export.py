"""Export a muP checkpoint, streamed: as a plain Llama, or as a stock Granite without its muP entry.

What engines read of a Granite, and where they stop (vLLM and llama.cpp as read in their sources, not run here):

| field | value | transformers | vLLM | llama.cpp |
|---|---|---|---|---|
| `logits_scaling` | m_N / α_out | divides the logits | scales by its inverse | required; divides |
| `embedding_multiplier` | α_in | yes | yes | optional; 0 means off |
| `residual_multiplier` | m_L^-α | yes, both branches | yes | optional; 0 means off |
| `attention_multiplier` | head_dim^-1/2 | instead of head_dim^-1/2 | yes | optional; 0 means off |
| `head_dim` | any | yes | yes | dropped by its converter: times the heads it must be the hidden size |
| `hidden_act` | silu | any | silu only | silu only |
| `mup` | base and constants | kept, not read | not read | not read |

`ExportReceipt.limits` names those that a model runs into. A Llama has none of these fields: all engines run it.

Both families have full RoPE, SwiGLU and pre-norm RMSNorm; biases come for all of q, k, v, o, or all of the MLP.
Granite scales `inputs_embeds` that are passed in, the folded Llama does not. Value, draft and other heads on top of
the last hidden state see it scaled in a folded tied model.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from transformers import GraniteConfig

from hf_warmscale.checkpoints import (
    ModelWeights,
    ModelWriter,
    Receipt,
    check_format_version,
    copy_side_files,
    open_checkpoint,
    refuse_existing,
    refuse_non_finite,
    skeleton,
    staged_directory,
    write_json,
)
from hf_warmscale.checkpoints.portable import portable
from hf_warmscale.checkpoints.receipts import fields_in
from hf_warmscale.mup.factors import FILE_NAME, TrainingFactors
from hf_warmscale.mup.fold import fold_factor, llama_config
from hf_warmscale.mup.granite_form import GraniteForm, head_dim, is_mup, refuse_stale_multipliers
from hf_warmscale.options import EXPORT_TARGETS, ExportTarget


@dataclass(frozen=True)
class ExportReceipt(Receipt):
    """The record of an export. See [`Receipt`].

    Args:
        source (`str`): the name of the checkpoint: a Hub id, or `./` and the name of a folder.
        to (`"llama"` or `"granite"`): what it became.
        tensors (`int`): how many were written.
        factors (`dict[str, float]`): what each kind of tensor was multiplied by, where that is not 1.
        exact (`bool`): all factors are powers of two, so no weight was rounded.
        limits (`list[str]`): engines that cannot run the result, and why.

    Example:

    ```python
    >>> receipt = export_checkpoint("mup-1b", "exported")
    >>> receipt.to, receipt.exact
    ('llama', True)
    ```
    """

    file_name: ClassVar[str] = "export.json"
    title: ClassVar[str] = "Export"
    tag: ClassVar[str] = "mup"
    format_version: ClassVar[int] = 1

    source: str
    to: ExportTarget
    tensors: int
    factors: dict[str, float]
    exact: bool
    limits: list[str]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_dict` of this version or of 0.1.0 wrote.

        Raises:
            ValueError: if a newer version wrote it, or a field is missing.
        """
        check_format_version(content, cls.format_version, cls.file_name)
        values = fields_in(cls, content, cls.file_name, "export the model again")
        return cls(**{**values, "source": portable(values["source"])})

    def summary(self) -> str:
        """Return one sentence for the card."""
        return f"Exported from `{self.source}` to `{self.to}`."

    def sources(self) -> list[str]:
        """Return the name of the source."""
        return [self.source]


def export_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: ExportTarget = "llama",
    revision: str | None = None,
    max_shard_size: int | str = "5GB",
) -> ExportReceipt:
    """Write a muP checkpoint as a plain Llama or a stock Granite, one tensor in memory at a time.

    `mup_factors.json` beside the weights holds the learning rate, weight decay and eps factors of every parameter,
    with which it trains further identically: `mup_param_groups(model, factors=TrainingFactors.load(output), lr=...)`,
    without clipping by the global gradient norm. The export of an export keeps its factors. The tokenizer and the
    generation config are copied.

    Args:
        source (`str` or `PathLike`): a saved [`MupForCausalLM`] or any Granite: a folder or a Hub id.
        output (`str` or `PathLike`): a new or empty folder.
        to (`"llama"` or `"granite"`): the family of the result.
        revision (`str`, *optional*): of the Hub id.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.

    Raises:
        ValueError: if the source is no Granite, its multipliers do not follow from its mup entry, a weight is not
            finite, Llama does not allow the shape, or `output` is not empty.
        FileNotFoundError: if there is no such checkpoint.
        OSError: if the disk is full.

    Example:

    ```python
    >>> export_checkpoint("mup-1b", "llama-1b").factors
    {'o_proj': 0.5, 'down_proj': 0.5, 'lm_head': 0.0625}
    ```
    """
    if to not in EXPORT_TARGETS:
        raise ValueError(f"The export target {to!r} is unknown; use one of {', '.join(EXPORT_TARGETS)}.")
    refuse_existing(output)
    checkpoint = open_checkpoint(source, revision=revision)
    config = checkpoint.config
    if not isinstance(config, GraniteConfig):
        raise ValueError(
            f"The checkpoint {checkpoint.source.name} is a {config.model_type}, not a Granite or muP model."
        )
    if is_mup(config):
        # Stale multipliers would be folded into the weights, where nobody could see them any more.
        refuse_stale_multipliers(config)
    weights = ModelWeights(checkpoint)
    factors = {name: fold_factor(config, name) if to == "llama" else 1.0 for name in weights.specs}
    target = llama_config(config) if to == "llama" else stock_granite(config)
    receipt = _receipt(checkpoint.source.identity, to, factors, config)
    if (checkpoint.folder / FILE_NAME).is_file() and not is_mup(config):
        # The source is an export: its config has lost the entry from which the rates would follow.
        trained = TrainingFactors.load(checkpoint.folder).absorb(factors)
    else:
        trained = training_factors(config, folded=to == "llama")
    with staged_directory(output) as folder:
        copy_side_files(checkpoint.folder, folder)
        with ModelWriter(folder, skeleton(target), weights.specs, max_shard_size=max_shard_size) as writer:
            for name, tensor in weights.tensors():
                refuse_non_finite(name, tensor)
                writer.write(name, tensor if factors[name] == 1 else tensor * factors[name])
        target.save_pretrained(folder)
        trained.save(folder)
        write_json(folder / receipt.file_name, receipt.to_dict())
    return receipt


def training_factors(config: GraniteConfig, *, folded: bool = True) -> TrainingFactors:
    """Return the factors with which a model trains further exactly as its Granite form would.

    Args:
        config (`GraniteConfig`): of the Granite form.
        folded (`bool`): the multipliers are in the weights.

    Example:

    ```python
    >>> role, own = training_factors(config).find("model.layers.0.mlp.up_proj.weight")
    >>> role, own.lr  # of a model twice as wide as its base
    ('hidden', 0.5)
    ```
    """
    form = GraniteForm.from_config(config) if is_mup(config) else GraniteForm.standard(config)
    scalings = {
        name: replace(scaling, absorbed=fold_factor(config, name) if folded else 1.0)
        for name, scaling in form.scalings().items()
    }
    return TrainingFactors.of(scalings, form.parametrization)


def stock_granite(config: GraniteConfig) -> GraniteConfig:
    """Return the config without its muP entry."""
    content = {key: value for key, value in config.to_dict().items() if key != "mup"}
    return GraniteConfig(**{**content, "head_dim": head_dim(config), "architectures": ["GraniteForCausalLM"]})


def serving_limits(config: GraniteConfig, to: ExportTarget) -> list[str]:
    """Return, in one sentence each, the engines that cannot run an exported model."""
    limits = []
    if to == "granite" and config.hidden_act != "silu":
        limits.append(f"vLLM's and llama.cpp's Granite compute silu, and hidden_act is {config.hidden_act}.")
    if to == "granite" and head_dim(config) * config.num_attention_heads != config.hidden_size:
        limits.append("llama.cpp's converter drops head_dim, which is not hidden_size / num_attention_heads here.")
    return limits


def _receipt(source: str, to: ExportTarget, factors: dict[str, float], config: GraniteConfig) -> ExportReceipt:
    # By kind: a factor follows from the module's name alone, so all layers share it.
    kinds = {name.split(".")[-2]: factor for name, factor in factors.items() if factor != 1}
    # `frexp` returns a mantissa in [0.5, 1); it is 0.5 for powers of two and for nothing else.
    exact = all(math.frexp(factor)[0] == 0.5 for factor in kinds.values())
    return ExportReceipt(source, to, len(factors), kinds, exact, serving_limits(config, to))
