"""The weights that an optimizer steps: a model's own parameters, or DeepSpeed's float32 masters of them."""

from typing import Protocol

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_warmscale.architecture import Role, describe


class MasterWeights(Protocol):
    """Weights by name; on several ranks, all of them call this together."""

    names: tuple[str, ...]

    def read(self, name: str) -> Tensor:
        """Return a whole weight."""
        ...

    def write(self, name: str, value: Tensor) -> None:
        """Replace a whole weight; the value was read here and may have been changed in place."""
        ...


class OwnWeights:
    """The parameters of a model, each whole on every rank. See [`MasterWeights`].

    Args:
        parameters (`dict[str, nn.Parameter]`): by name.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters, self.names = parameters, tuple(parameters)

    def read(self, name: str) -> Tensor:
        return self.parameters[name].data

    def write(self, name: str, value: Tensor) -> None:
        pass  # what was read is the parameter itself


class ZeroWeights:
    """The float32 masters of ZeRO, and the copies in training precision that the model computes with.

    Args:
        parameters (`dict[str, nn.Parameter]`): by name.

    Raises:
        ValueError: if DeepSpeed keeps masters that it does not show (fp16 without ZeRO).
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters, self.names = parameters, tuple(parameters)
        for name in self.names:
            if self._master(name) is None:
                raise ValueError(f"DeepSpeed does not show the master weight of {name}; use ZeRO stage 1, 2 or 3.")

    def read(self, name: str) -> Tensor:
        master = self._master(name)
        assert master is not None
        if is_deepspeed_zero3_enabled():
            return master
        # ZeRO-1 and 2 add the parts of all ranks up, and -0 + 0 is +0; the model's copy has kept the sign.
        signed = torch.copysign(master, self.parameters[name].data.to(master.dtype))
        return torch.where(master == 0, signed, master)

    def write(self, name: str, value: Tensor) -> None:
        from deepspeed import zero
        from deepspeed.utils import safe_set_full_fp32_param

        parameter = self.parameters[name]
        safe_set_full_fp32_param(parameter, value)
        # The step has already cast the masters for the next forward pass, so the cast has to follow.
        if is_deepspeed_zero3_enabled():
            with zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
        else:
            parameter.data.copy_(value)

    def _master(self, name: str) -> Tensor | None:
        from deepspeed.utils import safe_get_full_fp32_param

        master: Tensor | None = safe_get_full_fp32_param(self.parameters[name])
        return master


@torch.no_grad()
def master_weights(model: nn.Module, args: TrainingArguments, roles: tuple[Role, ...]) -> MasterWeights:
    """Return the trainable weights of some roles.

    Args:
        model (`nn.Module`): a causal LM that a `Trainer` trains, wrapped or not.
        args (`TrainingArguments`): its arguments.
        roles (`tuple[Role, ...]`): see [`Role`].

    Raises:
        ValueError: if the model is not a plain causal LM, has no such weight, or is sharded by FSDP.
    """
    if args.fsdp:
        raise ValueError("Magnitude pruning does not reach the shards of FSDP; train with DDP or DeepSpeed.")
    plain = extract_model_from_parallel(model, keep_fp32_wrapper=False, keep_torch_compile=False)
    if not isinstance(plain, PreTrainedModel):
        raise ValueError(f"A {type(plain).__name__} has no config to find its weights by; prune a transformers model.")
    named = dict(plain.named_parameters())
    wanted = [parameter.name for parameter in describe(plain.config).with_role(*roles)]
    missing = [name for name in wanted if name not in named]
    if missing:
        raise ValueError(f"The model has no {missing[0]}; merge and unload its adapters, or fold its kernels, first.")
    chosen = {name: named[name] for name in wanted if named[name].requires_grad}
    if not chosen:
        raise ValueError(f"The model has no trainable weight with the role {' or '.join(roles)}; name other roles.")
    return OwnWeights(chosen) if args.deepspeed_plugin is None else ZeroWeights(chosen)
