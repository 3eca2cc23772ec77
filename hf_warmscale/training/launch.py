"""Several processes: make them start on a CPU, where accelerate needs help, and check that the engine is in use."""

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import is_deepspeed_available
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, TrainingArguments

DEEPSPEED_VARIABLE = "ACCELERATE_USE_DEEPSPEED"


def launched_processes() -> int:
    """Return how many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def prepare_processes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments with the settings that several processes without an accelerator need.

    Call it before anything else of transformers or accelerate. Without an accelerator, accelerate picks no backend
    for DeepSpeed, and so sees one process only; and `use_cpu` makes it drop DeepSpeed silently. Here DeepSpeed gets
    gloo, and plain data parallelism gets `use_cpu`. With an accelerator, or with one process, nothing changes.

    Args:
        settings (`Mapping`): fields of `TrainingArguments`.

    Raises:
        ValueError: if DeepSpeed is asked for together with `use_cpu`, or without a launcher.
    """
    settings = dict(settings)
    deepspeed = bool(settings.get("deepspeed")) or os.environ.get(DEEPSPEED_VARIABLE, "false") == "true"
    if deepspeed and settings.get("use_cpu"):
        raise ValueError("use_cpu makes accelerate drop DeepSpeed silently; leave use_cpu out.")
    if deepspeed and "LOCAL_RANK" not in os.environ:
        raise ValueError("DeepSpeed needs a launcher; start with `accelerate launch` or `torchrun`.")
    if torch.accelerator.is_available() or launched_processes() == 1:
        return settings
    if not deepspeed:
        return {**settings, "use_cpu": True}
    os.environ[DEEPSPEED_VARIABLE] = "true"
    # The first state of a process is shared by all later ones; `use_configured_state` lets transformers keep it.
    PartialState(backend="gloo")
    configured = {**(settings.get("accelerator_config") or {}), "use_configured_state": True}
    return {**settings, "accelerator_config": configured}


def engine_name(model: nn.Module) -> str:
    """Return what runs a prepared model: `"zero-2"`, `"ddp"`, `"fsdp2"` or `"single"`."""
    if is_deepspeed_available():
        from deepspeed import DeepSpeedEngine

        if isinstance(model, DeepSpeedEngine):
            return f"zero-{model.zero_optimization_stage()}"
    if isinstance(model, DistributedDataParallel):
        return "ddp"
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        return "fsdp2"
    return "single"


def check_engine(model: nn.Module, args: TrainingArguments, *, deepspeed: bool, fsdp: bool) -> str:
    """Return `engine_name`, after making sure that it is the one that was asked for.

    Args:
        model (`nn.Module`): as prepared for training.
        args (`TrainingArguments`): of the trainer.
        deepspeed, fsdp (`bool`): what the trainer believes to run.

    Raises:
        ValueError: if the world size is not that of the launcher, or an engine was left out.
    """
    name = engine_name(model)
    if args.world_size != launched_processes():
        raise ValueError(
            f"The launcher started {launched_processes()} processes and the trainer sees {args.world_size}; start it "
            "with one of recipes/accelerate_configs."
        )
    asked = deepspeed or bool(args.deepspeed) or os.environ.get(DEEPSPEED_VARIABLE, "false") == "true"
    if asked and not name.startswith("zero"):
        raise ValueError("DeepSpeed was asked for and left out; call prepare_processes first and leave use_cpu out.")
    if fsdp and name == "ddp":
        raise ValueError("FSDP was asked for and the model is replicated; leave use_cpu out.")
    if args.world_size > 1 and name == "single":
        raise ValueError(
            f"{args.world_size} processes train the model without exchanging gradients; check the launch."
        )
    return name


def is_partitioned(model: nn.Module) -> bool:
    """Tell whether ZeRO-3 partitioned the weights of a model when it was loaded."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def partitioned_engine(model: nn.Module) -> nn.Module:
    """Return the engine that gathers the weights of a partitioned model for each forward pass; it trains nothing."""
    import deepspeed

    dtype = next(model.parameters()).dtype
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    return cast(nn.Module, engine)


def cast_partitions(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights that ZeRO-3 partitioned; it loads every model in the precision of its own config."""
    for parameter in model.parameters():
        partition = cast(Any, parameter).ds_tensor
        partition.data = partition.data.to(dtype)
        parameter.data = parameter.data.to(dtype)  # holds nothing, and tells the dtype of what is gathered


@torch.no_grad()
def partitioned_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that ZeRO-3 partitioned as it was loaded, partitioned too: no rank holds it whole.

    Raises:
        ValueError: if its weights are not those that its config asks for.
    """
    import deepspeed

    with torch.random.fork_rng():  # the first weights of the copy are drawn
        copied: PreTrainedModel = type(model)._from_config(copy.deepcopy(model.config))
    pairs = [dict(each.named_parameters()) | dict(each.named_buffers()) for each in (model, copied)]
    if pairs[0].keys() != pairs[1].keys():
        raise ValueError(
            f"ZeRO-3 has partitioned a {type(model).__name__} whose weights do not follow from its config, so it "
            "cannot be copied; load it before the training arguments are made."
        )
    for name, source in pairs[0].items():
        partitioned = [each for each in (source, pairs[1][name]) if hasattr(each, "ds_id")]
        with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0):
            pairs[1][name].copy_(source)
    copied.config.dtype = copied.dtype  # ZeRO-3 may have loaded the model in another one than it was asked for
    return copied


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and buffers that are saved, each gathered from all ranks if ZeRO-3 partitioned it."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if hasattr(tensor, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([tensor]):
                yield name, tensor.detach().clone()
        else:
            yield name, tensor
