"""Choose one layout for every dimension where shapes leave several, by proof."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_warmscale.architecture.model_map import Axis, Dimension
from hf_warmscale.architecture.observe import is_projection
from hf_warmscale.architecture.proof import PROVED_AXES, TOLERANCE, Labels, permutation_error

Choices = Mapping[str, tuple[list[Dimension], ...]]

MAX_ATTEMPTS = 1000
"""Labellings tried before an architecture is given up; the most plausible one is nearly always right."""


def kind_of(name: str, layer_path: str) -> str:
    """Return a name with the index of its block replaced by `{}`: what all blocks share.

    Example:

    ```python
    >>> from hf_warmscale.architecture.labelling import kind_of
    >>> kind_of("model.layers.11.mlp.up_proj.weight", "model.layers")
    'model.layers.{}.mlp.up_proj.weight'
    ```
    """
    head, separator, tail = name.partition(f"{layer_path}.")
    return name if head or not separator else f"{layer_path}.{{}}.{tail.partition('.')[2]}"


def label_options(
    model: PreTrainedModel, choices: Choices, readers: frozenset[str], layer_path: str
) -> list[list[Labels]]:
    """Return for every kind of module the ways to label its parameters, the most plausible first.

    All blocks share one choice. A projection that is fed with the residual stream reads the hidden axis and writes an
    inner one; any other writes the hidden axis.

    Args:
        model (`PreTrainedModel`): the tiny model.
        choices (`Mapping[str, tuple[list[Dimension], ...]]`): the layouts that fit the shapes of every parameter.
        readers (`frozenset[str]`): paths of the projections that are fed with the residual stream.
        layer_path (`str`): the path of the list of blocks.
    """
    owned: dict[str, dict[str, str]] = {}
    for name in choices:
        module, _, parameter = name.rpartition(".")
        owned.setdefault(module, {})[parameter] = name
    options: dict[str, list[Labels]] = {}
    for path, own in owned.items():
        kind = kind_of(f"{path}.", layer_path)
        if kind in options:
            continue
        module = model.get_submodule(path)
        if is_projection(module) and "weight" in own:
            ways = _projection_options(own, choices, _output_dimension(module), reads_stream=path in readers)
        else:
            ways = _vector_options(own, choices)
        options[kind] = [{kind_of(name, layer_path): label for name, label in way.items()} for way in ways]
    return list(options.values())


def choose_labels(
    model: PreTrainedModel,
    options: Sequence[Sequence[Labels]],
    sizes: Mapping[Axis, int],
    layer_path: str,
    tokens: torch.Tensor,
) -> tuple[Labels, dict[Axis, float]]:
    """Return the one labelling under which no permutation changes a logit, and the errors it leaves.

    Raises:
        ValueError: if no labelling passes, or if another one passes too.
    """
    names = [name for kinds in options for name in kinds[0]]
    axes = [axis for axis in PROVED_AXES if axis in sizes]
    kinds = {name: kind_of(name, layer_path) for name in model.state_dict()}

    def prove(picks: Sequence[int]) -> dict[Axis, float] | None:
        merged: dict[str, tuple[Dimension, ...]] = {}
        for ways, pick in zip(options, picks, strict=True):
            merged |= ways[pick]
        labels = {name: merged[kind] for name, kind in kinds.items() if kind in merged}
        errors = {}
        for axis in axes:
            errors[axis] = permutation_error(model, labels, sizes, axis, tokens)
            if not errors[axis] <= TOLERANCE:
                return None
        return errors

    for picks in _by_plausibility([len(ways) for ways in options]):
        errors = prove(picks)
        if errors is not None:
            break
    else:
        raise ValueError(
            f"{model.config.model_type}: no labelling of its {len(names)} kinds of weights survives permuting "
            f"{', '.join(axes)}, so its axes are not interchangeable or its layout is unknown."
        )
    for slot, ways in enumerate(options):
        for other in range(len(ways)):
            if other != picks[slot] and prove((*picks[:slot], other, *picks[slot + 1 :])) is not None:
                raise ValueError(
                    f"{model.config.model_type}: {', '.join(ways[0])} can be read in two ways that behave alike; "
                    "add its inner order to hf_warmscale/architecture/layouts.py."
                )
    chosen: dict[str, tuple[Dimension, ...]] = {}
    for ways, pick in zip(options, picks, strict=True):
        chosen |= ways[pick]
    return chosen, errors


def _by_plausibility(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield picks, first those that deviate from the most plausible one in few places."""
    open_slots = [slot for slot, count in enumerate(counts) if count > 1]
    attempts = 0
    for deviations in range(len(open_slots) + 1):
        for slots in combinations(open_slots, deviations):
            for picks in product(*(range(1, counts[slot]) for slot in slots)):
                if attempts == MAX_ATTEMPTS:
                    return
                attempts += 1
                chosen = dict(zip(slots, picks, strict=True))
                yield tuple(chosen.get(slot, 0) for slot in range(len(counts)))


def _projection_options(
    own: Mapping[str, str], choices: Choices, output: int, *, reads_stream: bool
) -> list[dict[str, tuple[Dimension, ...]]]:
    weight = choices[own["weight"]]
    ranked = []
    for label in product(*weight):
        reads_hidden, writes_hidden = _is_hidden(label[1 - output]), _is_hidden(label[output])
        implausible = (reads_hidden != reads_stream) + (writes_hidden == reads_stream)
        way = {own["weight"]: label}
        if "bias" in own:
            if label[output] not in choices[own["bias"]][0]:
                continue
            way[own["bias"]] = (label[output],)
        way |= {
            name: tuple(dim[0] for dim in choices[name]) for key, name in own.items() if key not in ("weight", "bias")
        }
        ranked.append((implausible, way))
    return [way for _, way in sorted(ranked, key=lambda item: item[0])]


def _vector_options(own: Mapping[str, str], choices: Choices) -> list[dict[str, tuple[Dimension, ...]]]:
    if len({str(choices[name]) for name in own.values()}) == 1:  # a gain and its bias lie along the same axis
        return [dict.fromkeys(own.values(), label) for label in product(*choices[next(iter(own.values()))])]
    names = list(own.values())
    combined = product(*(list(product(*choices[name])) for name in names))
    return [dict(zip(names, labels, strict=True)) for labels in combined]


def _is_hidden(dimension: Dimension) -> bool:
    return any(Axis.HIDDEN in block for block in dimension)


def _output_dimension(module: nn.Module) -> int:
    return 0 if isinstance(module, nn.Linear) else 1
