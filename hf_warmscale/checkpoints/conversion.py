"""The names of a model against the names in its files: what transformers renames, splits or fuses on loading.

Mixtral's files hold one matrix per expert, its model one tensor for all of them; GPT-2's files lack a prefix. The
rules are transformers' own (`compat.transformers`); here they are applied to one group of tensors at a time, so that a
checkpoint can be converted without holding all of it in memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.checkpoints.tensors import TensorSpec
from hf_warmscale.compat.transformers import (
    WeightConversions,
    convert,
    in_natural_order,
    loaded_name,
    loading_conversions,
    renamed,
    saved_name,
    saving_conversions,
    without_partitioning,
)


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the causal LM of a config on the meta device: names and shapes, no memory.

    Raises:
        ValueError: if no causal LM can be built of the config.

    Args:
        config (`PreTrainedConfig`): of any causal LM.

    Example:

    ```python
    >>> skeleton(model.config).lm_head.weight.device
    device(type='meta')
    ```
    """
    try:
        with without_partitioning(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a family's own code may raise anything on a config that does not fit together
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ValueError(f"No causal LM can be built of this {config.model_type} config: {reason}.") from error
    return model


@dataclass
class Group:
    """Tensors that are converted together.

    Args:
        key (`str`): the name of the first result.
        conversions (`WeightConversions`): of the family, in the direction of the group.
        pattern (`str` or `None`): a pattern of the converter; `None` if one tensor only changes its name.
        sources (`dict[str, str]`): each source name, with the pattern of the converter that it matches.
        saving (`bool`): the results are renamed once more. On saving, names are changed after the conversion; on
            loading before it.
    """

    key: str
    conversions: WeightConversions
    pattern: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    saving: bool = False

    def convert(self, tensors: Mapping[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Return the results by name. A tensor that is only renamed is not copied."""
        if self.pattern is None:
            (source,) = self.sources
            return {self.key: tensors[source]}
        given = ((name, pattern, tensors[name]) for name, pattern in self.sources.items())
        renamings = self.conversions.renamings if self.saving else ()
        results = convert(self.conversions.by_pattern[self.pattern], self.key, given, model)
        return {renamed(name, renamings): value for name, value in results.items()}

    def result_specs(self, specs: Mapping[str, TensorSpec], model: PreTrainedModel) -> dict[str, TensorSpec]:
        """Return the specs of the results, from those of the sources."""
        if self.pattern is None:
            (source,) = self.sources
            return {self.key: specs[source]}
        # On the meta device transformers' own conversion yields shapes and dtypes without reading any data.
        empty = {name: torch.empty(specs[name].shape, dtype=specs[name].dtype, device="meta") for name in self.sources}
        return {name: TensorSpec.of(tensor) for name, tensor in self.convert(empty, model).items()}


def loading_groups(stored: Iterable[str], model: PreTrainedModel) -> list[Group]:
    """Group the stored names by the tensor of `model` that they become; names it does not have are left out."""
    conversions = loading_conversions(model)
    state = model.state_dict()
    groups: dict[str, Group] = {}
    # In natural order (2 before 10), since a converter stacks its sources in the order in which they are added.
    for name in in_natural_order(stored):
        key, pattern = loaded_name(name, conversions, model, state)
        if key not in state and name in state:  # a renaming of older files that also matches a current name
            key, pattern = name, None
        if key in state:
            _add(groups, Group(key, conversions), name, pattern)
    return list(groups.values())


def saving_groups(model: PreTrainedModel) -> list[Group]:
    """Group the names of `model` by the tensor in the file that they become; tied names are left out."""
    conversions = saving_conversions(model)
    groups: dict[str, Group] = {}
    for name in in_natural_order(model.state_dict().keys() - model.all_tied_weights_keys.keys()):
        key, pattern = saved_name(name, conversions)
        _add(groups, Group(key, conversions, saving=True), name, pattern)
    return list(groups.values())


def _add(groups: dict[str, Group], new: Group, name: str, pattern: str | None) -> None:
    group = groups.setdefault(new.key, new)
    # A renamed tensor carries its own name in place of a pattern; `convert` then never asks a converter.
    group.pattern = group.pattern or pattern
    group.sources[name] = pattern or name
