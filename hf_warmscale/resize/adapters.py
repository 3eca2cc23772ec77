"""Grow LoRA adapters with their model, and train only the new blocks of a grown model."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_warmscale.architecture import ParameterMap, describe
from hf_warmscale.checkpoints import refuse_existing, staged_directory, write_json
from hf_warmscale.checkpoints.files import ADAPTER_CONFIG, ADAPTER_FILE
from hf_warmscale.resize.growing.receipt import CONFIG_ENTRY
from hf_warmscale.resize.growing.replay import replay_stored
from hf_warmscale.resize.planning.plan import Plan
from hf_warmscale.resize.planning.transfer import Transfer, transfer_tensor

PEFT_PREFIX = "base_model.model."
BY_LAYER = ("layers_to_transform", "rank_pattern", "alpha_pattern")
"""Fields of a LoRA config that name single blocks, whose numbers change with the depth."""


def grow_adapter(
    adapter: str | os.PathLike[str],
    source: str | os.PathLike[str],
    grown: str | os.PathLike[str],
    output: str | os.PathLike[str],
) -> None:
    """Grow a LoRA adapter with the model that it was trained on.

    A reads the inputs of its weight and B writes its outputs, so each follows one side of the weight's map; the rank
    stays. After an exact growth, model and adapter together compute the same function as before.

    Args:
        adapter (`str` or `PathLike`): a folder that peft saved, of LoRA on linear layers.
        source (`str` or `PathLike`): the model it was trained on.
        grown (`str` or `PathLike`): the result of [`grow_checkpoint`] for that model.
        output (`str` or `PathLike`): a new or empty folder.

    Raises:
        FileNotFoundError: if the adapter or a model does not exist.
        ValueError: if it is not a LoRA of linear layers, or names single blocks while the depth changes.

    Example:

    ```python
    >>> grow_adapter("adapter", "small", "large", "large-adapter")
    >>> PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("large"), "large-adapter")
    ```
    """
    adapter, folder = Path(adapter), Path(output)
    for name in (ADAPTER_FILE, ADAPTER_CONFIG):
        if not (adapter / name).is_file():
            raise FileNotFoundError(f"There is no {adapter / name}; name a folder that peft saved as safetensors.")
    refuse_existing(folder)
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    plan = replay_stored(source, grown).plan
    _refuse_config(config, plan)
    tensors = grow_lora(load_file(adapter / ADAPTER_FILE), plan)
    with staged_directory(folder) as staging:
        save_file(tensors, staging / ADAPTER_FILE, metadata={"format": "pt"})
        # By full name, because the original patterns may have held numbers of blocks.
        targets = {"target_modules": sorted({_module(key) for key in tensors}), "exclude_modules": None}
        write_json(staging / ADAPTER_CONFIG, {**config, **targets, "base_model_name_or_path": os.fspath(grown)})


def grow_lora(tensors: dict[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Return the factors of LoRA for the target of a plan, under peft's names.

    Raises:
        ValueError: if a tensor is not a factor of a linear layer of the source.
    """
    grown, used = {}, set[str]()
    for name, target in plan.target.parameters.items():
        copy = plan.copy(name)
        before, after = (PEFT_PREFIX + full.removesuffix(".weight") for full in (copy.source, name))
        keys = f"{before}.lora_A.weight", f"{before}.lora_B.weight"
        if not name.endswith(".weight") or keys[0] not in tensors:
            continue
        used.update(keys)
        for key, transfer in zip(keys, _factors(copy, target, len(tensors[keys[0]]), plan), strict=True):
            value = transfer_tensor(transfer, tensors[key], key=key, dtype=tensors[key].dtype)
            grown[after + key.removeprefix(before)] = value
    if left := tensors.keys() - used:
        raise ValueError(
            f"The adapter holds {min(left)}, which is not a LoRA of a linear layer; merge it and grow the model."
        )
    return grown


def _module(key: str) -> str:
    return key.removeprefix(PEFT_PREFIX).rpartition(".lora_")[0]


def _factors(copy: Transfer, target: ParameterMap, rank: int, plan: Plan) -> tuple[Transfer, Transfer]:
    """Return the transfers of A `[rank, in]` and B `[out, rank]`, from the transfer of their weight."""
    assert target.fan_in is not None and target.fan_out is not None
    ranks = torch.arange(rank)
    reads, writes = target.fan_in, target.fan_out
    # The update of the weight is B A. Each factor takes the map of its own side, and the scale goes into B alone,
    # because it must act once. An inserted block writes nothing, so its B starts at zero as a whole.
    a = Transfer(copy.source, (ranks, copy.index[reads]), ("zero", "zero"), (None, copy.weights[reads]))
    b = Transfer(
        copy.source,
        (copy.index[writes], ranks),
        ("mean" if copy.fill[writes] == "mean" else "zero", "zero"),
        (copy.weights[writes], None),
        scale=0.0 if plan.is_new(target) else copy.scale,
    )
    return a, b


def _refuse_config(config: dict[str, object], plan: Plan) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"The adapter has the type {config.get('peft_type')}; only LoRA can grow with its model.")
    deeper = not plan.layers.is_identity(len(set(plan.layers.source)))
    named = [name for name in BY_LAYER if config.get(name)]
    if named and deeper:
        raise ValueError(
            f"The adapter's {named[0]} names single blocks, whose numbers change with the depth; merge the adapter."
        )


def freeze_old_blocks(model: PreTrainedModel) -> list[str]:
    """Freeze everything but the blocks that `identity` inserted (block expansion, arXiv:2401.02415).

    Args:
        model (`PreTrainedModel`): a grown model, live or loaded.

    Returns:
        `list[str]`: the names of the parameters that still train.

    Raises:
        ValueError: if the model has no inserted blocks.

    Example:

    ```python
    >>> model = grow_from_pretrained("HuggingFaceTB/SmolLM2-135M", num_hidden_layers=40, depth="identity")
    >>> len(freeze_old_blocks(model))
    90
    ```
    """
    entry = model.config.to_dict().get(CONFIG_ENTRY) or {}
    if not entry.get("new_layers"):
        raise ValueError(
            "The model has no inserted blocks; grow it with depth='identity' and a larger num_hidden_layers."
        )
    path = describe(model.config).layer_path
    new = tuple(f"{path}.{layer}." for layer in entry["new_layers"])
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(new))
        if parameter.requires_grad:
            trained.append(name)
    return trained
