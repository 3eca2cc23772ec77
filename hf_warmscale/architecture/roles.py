"""The role of a parameter, from the module that owns it and the axes of its dimensions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hf_warmscale.architecture.model_map import Axis, Component, Dimension, NormMap, Role
from hf_warmscale.architecture.observe import is_norm, is_projection
from hf_warmscale.architecture.proof import Labels

_INNER_MLP = frozenset({Axis.INTERMEDIATE, Axis.EXPERT_INTERMEDIATE, Axis.SHARED_INTERMEDIATE, Axis.EXPERTS})
_INNER_ATTENTION = frozenset({Axis.HEADS, Axis.KV_HEADS})
_STACKED_DOWN = ("down", "w2", "wo", "output_linear")


@dataclass(frozen=True)
class Labelled:
    """A `ParameterMap` without name, layer and module: the same parameter of all blocks shares it."""

    role: Role
    component: Component
    dimensions: tuple[Dimension, ...]
    fan_in: int | None
    fan_out: int | None

    def writes(self, axis: Axis) -> bool:
        """Tell whether the output lies along `axis`."""
        return self.fan_out is not None and axis in axes_in(self.dimensions[self.fan_out : self.fan_out + 1])


def label_parameter(model: PreTrainedModel, name: str, labels: Labels, norms: Mapping[str, NormMap]) -> Labelled:
    """Return the role, the component and the direction of one parameter or saved buffer.

    Args:
        model (`PreTrainedModel`): the tiny model.
        name (`str`): the name of the parameter.
        labels (`Mapping[str, tuple[Dimension, ...]]`): the axes of all parameters, by name.
        norms (`Mapping[str, NormMap]`): the norms, by path.
    """
    path, _, own = name.rpartition(".")
    module = _owner(model, name)
    dimensions = labels[name]
    fan_in, fan_out = _direction(module, own, dimensions)
    role = _role(model, module, path, name, dimensions, fan_in, norms)
    siblings = [label for other, label in labels.items() if other.rpartition(".")[0] == path]
    return Labelled(role, _component(model, module, path, role, siblings), dimensions, fan_in, fan_out)


def _owner(model: PreTrainedModel, name: str) -> nn.Module:
    """Return the module of a parameter: of a tied table the embedding, also where the readout has its first name."""
    embedding: nn.Module = model.get_input_embeddings()
    tensor = dict(model.named_parameters()).get(name)
    holds_table = tensor is not None and any(tensor is own for own in embedding.parameters(recurse=False))
    return embedding if holds_table else model.get_submodule(name.rpartition(".")[0])


def axes_in(dimensions: Sequence[Dimension]) -> frozenset[Axis]:
    """Return the axes that occur in any of the dimensions."""
    return frozenset(f for dim in dimensions for block in dim for f in block.factors if isinstance(f, Axis))


def _direction(module: nn.Module, own: str, dimensions: Sequence[Dimension]) -> tuple[int | None, int | None]:
    if isinstance(module, nn.Linear) and own == "weight":
        return 1, 0
    if is_projection(module) and own == "weight":
        return 0, 1  # Conv1D stores [in, out], nn.Linear [out, in]
    if isinstance(module, nn.Embedding):
        return None, 1
    if len(dimensions) < 2:
        return None, 0 if dimensions else None
    if len(dimensions) == 3 and Axis.EXPERTS in axes_in(dimensions[:1]):
        # Stacked experts are [experts, out, in] in some families and [experts, in, out] in others. So the position of
        # the hidden axis decides, and the name tells whether it is read or written.
        hidden = next((dim for dim in (1, 2) if Axis.HIDDEN in axes_in(dimensions[dim : dim + 1])), None)
        if hidden is None:
            return None, None
        writes_hidden = any(part in own or part in type(module).__name__ for part in _STACKED_DOWN)
        return (3 - hidden, hidden) if writes_hidden else (hidden, 3 - hidden)
    router = own == "weight" and Axis.EXPERTS in axes_in(dimensions[:1]) and Axis.HIDDEN in axes_in(dimensions[1:])
    if len(dimensions) == 2 and router:
        return 1, 0  # a router that holds its matrix itself (Mixtral, Qwen-MoE)
    return None, len(dimensions) - 1


def _role(
    model: PreTrainedModel,
    module: nn.Module,
    path: str,
    name: str,
    dimensions: Sequence[Dimension],
    fan_in: int | None,
    norms: Mapping[str, NormMap],
) -> Role:
    if name not in dict(model.named_parameters()):
        return "buffer"
    if module is model.get_input_embeddings() or isinstance(module, nn.Embedding):
        return "embedding"
    if module is model.get_output_embeddings():
        # The module of the readout may own a bias too, which has no fan_in.
        return "bias" if fan_in is None else "readout"
    if is_norm(module) and not name.endswith("bias"):
        final = path in norms and norms[path].position == "final"
        return "final_norm" if final else "norm"
    if fan_in is None:
        return "bias"
    axes = axes_in(dimensions)
    return "router" if Axis.EXPERTS in axes and not axes & (_INNER_MLP - {Axis.EXPERTS}) else "hidden"


def _component(
    model: PreTrainedModel, module: nn.Module, path: str, role: Role, siblings: Sequence[Sequence[Dimension]]
) -> Component:
    if role in ("norm", "final_norm") or is_norm(module):
        return "norm"
    if role == "embedding":
        return "embedding"
    if module is model.get_output_embeddings():
        return "readout"
    axes = frozenset[Axis]().union(*(axes_in(dimensions) for dimensions in siblings))
    if axes & _INNER_ATTENTION:
        return "attention"
    return "mlp" if axes & _INNER_MLP else "other"
