"""The names of a model against the names in its files: what transformers renames, splits or fuses on loading.

Mixtral's files hold one matrix for each expert, its model one tensor for all of them; GPT-2's files lack a prefix.
The rules are transformers' own; here they are applied to one group of tensors at a time.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

from hf_warmscale.checkpoints.tensors import TensorSpec


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the causal LM of a config on the meta device: names and shapes, no memory.

    Raises:
        ValueError: if no causal LM can be built of the config.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a family's own code may raise anything on a config that does not fit together
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ValueError(f"No causal LM can be built of this {config.model_type} config: {reason}.") from error
    return model


@dataclass
class Group:
    """Tensors that turn into other tensors together.

    Args:
        key (`str`): the name of the first result.
        converter (`WeightConverter` or `None`): `None` if one tensor only changes its name.
        sources (`dict[str, str]`): each name that goes in, with the pattern of the converter that it matches.
        renamings (`list[WeightRenaming]`): what renames the results once more, as it does on saving.
    """

    key: str
    converter: WeightConverter | None = None
    sources: dict[str, str] = field(default_factory=dict)
    renamings: list[WeightRenaming] = field(default_factory=list)

    def convert(self, tensors: Mapping[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Return the results by name. A renamed tensor is not copied."""
        if self.converter is None:
            (source,) = self.sources
            return {self.key: tensors[source]}
        converter = deepcopy(self.converter)
        for name, pattern in self.sources.items():
            # Annotated as a future; on saving transformers passes tensors, as here.
            converter.add_tensor(self.key, name, pattern, tensors[name])  # type: ignore[arg-type]
        results = converter.convert(self.key, model=model, config=model.config).items()
        return {
            apply_renamings(name, self.renamings): value[0] if isinstance(value, list) else value
            for name, value in results
        }

    def result_specs(self, specs: Mapping[str, TensorSpec], model: PreTrainedModel) -> dict[str, TensorSpec]:
        """Return the specs of the results, from those of the sources."""
        if self.converter is None:
            (source,) = self.sources
            return {self.key: specs[source]}
        empty = {name: torch.empty(specs[name].shape, dtype=specs[name].dtype, device="meta") for name in self.sources}
        return {name: TensorSpec.of(tensor) for name, tensor in self.convert(empty, model).items()}


def loading_groups(stored: Iterable[str], model: PreTrainedModel) -> list[Group]:
    """Group the stored names by what they become in `model`; names that the model does not have are left out."""
    renamings, converters, by_pattern = _split(get_model_conversion_mapping(model))
    state = model.state_dict()
    groups: dict[str, Group] = {}
    for name in sorted(stored, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if key not in state and name in state:
            key, pattern = name, None
        if key in state:
            _add(groups, name, key, pattern, by_pattern)
    return list(groups.values())


def saving_groups(model: PreTrainedModel) -> list[Group]:
    """Group the names of `model` by what they become in a file; of tied names only the source is saved."""
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    reverse = [
        transform.reverse_transform() for transform in transforms[::-1] if not isinstance(transform, PrefixChange)
    ]
    renamings, converters, by_pattern = _split(reverse)
    groups: dict[str, Group] = {}
    for name in sorted(model.state_dict().keys() - model.all_tied_weights_keys.keys(), key=dot_natural_key):
        key, pattern = apply_converters(name, converters)
        _add(groups, name, key if pattern else apply_renamings(name, renamings), pattern, by_pattern, renamings)
    return list(groups.values())


def _split(
    transforms: list[WeightTransform],
) -> tuple[list[WeightRenaming], list[WeightConverter], dict[str, WeightConverter]]:
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    return renamings, converters, {pattern: each for each in converters for pattern in each.source_patterns}


def _add(
    groups: dict[str, Group],
    name: str,
    key: str,
    pattern: str | None,
    by_pattern: Mapping[str, WeightConverter],
    renamings: Iterable[WeightRenaming] = (),
) -> None:
    converter = None if pattern is None else by_pattern[pattern]
    group = groups.setdefault(key, Group(key, converter, renamings=list(renamings)))
    group.sources[name] = pattern or name
