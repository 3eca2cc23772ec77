"""Majority kernels: train a random convex combination of copies of each weight, deploy their mean (2402.05033)."""

import fnmatch
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_warmscale.mup import is_mup
from hf_warmscale.refusals import refuse_unknown

Granularity = Literal["unit", "tensor", "element"]
"""What shares one random combination: the weights of an output unit, a whole tensor, or each element its own."""

WEIGHT = "weight"

Model = TypeVar("Model", bound=nn.Module)


class MajorityKernel(nn.Module):
    """Combine `expansion` copies of a weight: at random while training, evenly otherwise.

    The shares of the copies are uniform on the simplex, and drawn at every forward pass: `p_k = e_k / sum(e)` with
    `e ~ Exp(1)`.

    Args:
        expansion (`int`): number of copies.
        granularity (`str`): one of `Granularity`.
        unit_dim (`int`): the dimension of the weight that runs over output units.
        noise (`float`): standard deviation of the noise on every copy at the start, relative to the weight's own.
    """

    def __init__(self, expansion: int, granularity: Granularity, unit_dim: int, noise: float) -> None:
        super().__init__()
        self.expansion, self.granularity, self.unit_dim, self.noise = expansion, granularity, unit_dim, noise

    def forward(self, copies: Tensor) -> Tensor:
        """Return the weight of `[expansion, ...]` copies."""
        if not self.training:
            return copies.mean(dim=0)
        # Normalised Exp(1) variables are uniform on the simplex; normalised uniform ones are not: they crowd at the
        # centre.
        shares = torch.empty(self._shares_shape(copies), dtype=copies.dtype, device=copies.device).exponential_()
        return (shares / shares.sum(dim=0) * copies).sum(dim=0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the copies of a weight; without noise they are equal and the function stays the same."""
        copies = weight.detach().expand(self.expansion, *weight.shape).clone()
        return copies + self.noise * weight.std() * torch.randn_like(copies) if self.noise else copies

    def _shares_shape(self, copies: Tensor) -> tuple[int, ...]:
        if self.granularity == "element":
            return tuple(copies.shape)
        # The copies are dimension 0, so the dimensions of the weight move up by one.
        unit = self.unit_dim + 1 if self.granularity == "unit" else 0
        return tuple(size if dim in (0, unit) else 1 for dim, size in enumerate(copies.shape))


def apply_majority_kernels(
    model: Model,
    *,
    expansion: int = 3,
    granularity: Granularity = "unit",
    noise: float = 0.0,
    target_modules: Sequence[str] | None = None,
) -> Model:
    """Expand the linear layers of a model in place. Call it before the trainer is made; the model keeps its class.

    Embeddings, the output head and tied weights are not expanded: a tied weight is one parameter in two modules, and
    an expanded head would change the shape of the embedding. With e copies, the mean of the copies moves by
    `sqrt((e + 1) / (2 e))` of the step of a plain weight under Adam, and by `1 / e` under SGD; so multiply the rate of
    SGD by e. The parameters and the optimizer state of these layers grow e-fold. muP models are refused, because their
    parameter groups follow from the names, which this changes.

    Args:
        model (`nn.Module`): any model of transformers, or of `nn.Linear` layers.
        expansion (`int`): copies of each weight.
        granularity (`str`): one of `Granularity`.
        noise (`float`): on the copies at the start, relative to the standard deviation of the weight. With 0 the
            function stays the same, and the random combinations alone separate the copies.
        target_modules (`Sequence[str]`, *optional*): patterns of module names, such as `"*.mlp.*"`; all linear layers
            by default.

    Returns:
        `Model`: the same object.

    Raises:
        ValueError: for an expansion below 1, a pattern that matches nothing, a muP model, or an expanded model.

    Example:

    ```python
    >>> model = apply_majority_kernels(AutoModelForCausalLM.from_pretrained("small"), expansion=3)
    >>> Trainer(model, args, train_dataset=rows).train()
    >>> fold_majority_kernels(model).save_pretrained("trained")
    ```
    """
    refuse_unknown("granularity", granularity, get_args(Granularity))
    if expansion < 1:
        raise ValueError(f"expansion is {expansion}; a kernel needs at least one copy.")
    if is_mup(getattr(model, "config", None)):
        raise ValueError("The model carries muP metadata, whose parameter groups go by name; export it first.")
    if any(map(parametrize.is_parametrized, model.modules())):
        raise ValueError("The model has majority kernels already; fold them before applying others.")
    # Where the two factors above are from: a share s is Beta(1, e - 1), with E[s] = 1 / e, E[s^2] = 2 / (e (e + 1)).
    # If the weight has a steady gradient g, a copy has s * g. So SGD moves it by g / e, and Adam by the full step
    # times E[s] / sqrt(E[s^2]) = sqrt((e + 1) / (2 e)).
    for module in _targets(model, target_modules):
        # GPT-2's `Conv1D` stores [in, out], `nn.Linear` [out, in].
        kernel = MajorityKernel(expansion, granularity, 1 if isinstance(module, Conv1D) else 0, noise)
        parametrize.register_parametrization(module, WEIGHT, kernel.train(module.training))
    return model


def fold_majority_kernels(model: Model) -> Model:
    """Replace the copies of each weight by their mean, in place, and restore the parameter names.

    Args:
        model (`nn.Module`): a model that `apply_majority_kernels` expanded.

    Returns:
        `Model`: the same object, in evaluation mode.

    Raises:
        ValueError: if the model has no majority kernels.

    Example:

    ```python
    >>> model = fold_majority_kernels(model)
    ```
    """
    kernels = _kernels(model)
    model.eval()
    for module in kernels.values():
        parametrize.remove_parametrizations(module, WEIGHT, leave_parametrized=True)
    return model


def majority_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the folded weights of a model in training: `model.save_pretrained(folder, state_dict=...)`.

    Raises:
        ValueError: if the model has no majority kernels.

    Example:

    ```python
    >>> model.save_pretrained("snapshot", state_dict=majority_state_dict(model))
    ```
    """
    state = dict(model.state_dict())
    for name in _kernels(model):
        state[f"{name}.{WEIGHT}"] = state.pop(f"{name}.parametrizations.{WEIGHT}.original").mean(dim=0)
    return state


def _kernels(model: nn.Module) -> dict[str, nn.Module]:
    """Return the expanded modules by name."""
    found = {
        name: module
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, WEIGHT)
        and isinstance(module.parametrizations[WEIGHT][0], MajorityKernel)
    }
    if not found:
        raise ValueError("The model has no majority kernels; apply_majority_kernels makes them.")
    return found


def _targets(model: nn.Module, patterns: Sequence[str] | None) -> list[nn.Module]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    chosen = linear
    if patterns is not None:
        for pattern in patterns:
            if not fnmatch.filter(linear, pattern):
                raise ValueError(
                    f"The pattern {pattern!r} matches no linear layer, such as {next(iter(linear), None)}."
                )
        chosen = {name: linear[name] for name in linear if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    # `named_parameters` lists a tied parameter once only; so count the modules that own it.
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [module for module in chosen.values() if module is not head and owners[id(module.weight)] == 1]
