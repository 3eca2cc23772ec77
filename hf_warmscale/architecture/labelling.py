"""Choose a layout for every dimension whose shape allows several, by proof."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice, product

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture.fields import per_layer_fields
from hf_warmscale.architecture.layouts import UnknownLayoutError
from hf_warmscale.architecture.model_map import Axis, Dimension
from hf_warmscale.architecture.observe import is_projection, logits_of
from hf_warmscale.architecture.proof import PROVED_AXES, TOLERANCE, Labels, permutation_error
from hf_warmscale.architecture.tiny import named_state

Choices = Mapping[str, tuple[list[Dimension], ...]]
KindOf = Callable[[str], str]
"""`kind_of` of one architecture: a name to what all blocks of one kind call it."""

MAX_ATTEMPTS = 64
"""The number of labellings tried before an architecture is refused; the most plausible one is nearly always right."""


def kind_of(name: str, layer_path: str, blocks: Sequence[str] = ()) -> str:
    """Return a name with the index of its block replaced by `{}`, which all blocks share.

    Args:
        name (`str`): of a parameter, or a path with a dot at its end.
        layer_path (`str`): the path of the list of blocks.
        blocks (`Sequence[str]`): the kind of each block, where one name stands for different weights in them; it is
            written between the braces.

    Example:

    ```python
    >>> from hf_warmscale.architecture.labelling import kind_of
    >>> kind_of("model.layers.11.mlp.up_proj.weight", "model.layers")
    'model.layers.{}.mlp.up_proj.weight'
    ```
    """
    head, separator, tail = name.partition(f"{layer_path}.")
    if head or not separator:
        return name
    index, _, rest = tail.partition(".")
    return f"{layer_path}.{{{blocks[int(index)] if blocks and index.isdigit() else ''}}}.{rest}"


def field_of_kinds(config: PreTrainedConfig, choices: Choices, layer_path: str) -> str | None:
    """Return the list by layer that tells blocks apart in which one name stands for weights of different layouts.

    Both mixers of Kimi-Linear have an `o_proj`: one reads heads, the other a width that has no axis.

    Args:
        config (`PreTrainedConfig`): of the tiny model.
        choices (`Mapping[str, tuple[list[Dimension], ...]]`): the layouts that fit the shapes of every parameter.
        layer_path (`str`): the path of the list of blocks.

    Returns:
        `str` or `None`: `None` if names alone suffice, or if no list by layer tells more.
    """
    fields = per_layer_fields(config) if _ambiguous(choices, layer_path, ()) else ()
    return next((name for name in fields if not _ambiguous(choices, layer_path, kinds_of_blocks(config, name))), None)


def kinds_of_blocks(config: PreTrainedConfig, field: str | None) -> list[str]:
    """Return the entry of each block in a list by layer; nothing without one."""
    return [] if field is None else [str(entry) for entry in getattr(config, field)]


def _ambiguous(choices: Choices, layer_path: str, blocks: Sequence[str]) -> bool:
    first: dict[str, tuple[list[Dimension], ...]] = {}
    return any(first.setdefault(kind_of(name, layer_path, blocks), each) != each for name, each in choices.items())


def label_options(
    model: PreTrainedModel, choices: Choices, readers: frozenset[str], kind_of: KindOf
) -> list[list[Labels]]:
    """Return, for every kind of module, the ways to label its parameters, the most plausible one first.

    All blocks of a kind share one choice. A projection whose input is the residual stream probably reads the hidden
    axis and writes an inner one; any other projection probably writes the hidden axis.

    Args:
        model (`PreTrainedModel`): the tiny model.
        choices (`Mapping[str, tuple[list[Dimension], ...]]`): the layouts that fit the shapes of every parameter.
        readers (`frozenset[str]`): paths of the projections whose input is the residual stream.
        kind_of (`Callable`): see `KindOf`.
    """
    owned: dict[str, dict[str, str]] = {}
    for name in choices:
        path, _, parameter = name.rpartition(".")
        owned.setdefault(path, {})[parameter] = name
    options: dict[str, list[Labels]] = {}
    for path, own in owned.items():
        kind = kind_of(f"{path}.")
        # All blocks of a kind share one pick, so the modules of the first stand for those of all others.
        if kind in options:
            continue
        module = model.get_submodule(path)
        if is_projection(module) and "weight" in own:
            ways = _projection_options(own, choices, _output_dimension(module), reads_stream=path in readers)
        else:
            ways = _vector_options(own, choices)
        options[kind] = [{kind_of(name): label for name, label in way.items()} for way in ways]
    return list(options.values())


def choose_labels(
    model: PreTrainedModel,
    options: Sequence[Sequence[Labels]],
    sizes: Mapping[Axis, int],
    kind_of: KindOf,
    tokens: torch.Tensor,
) -> tuple[Labels, dict[Axis, float]]:
    """Return the only labelling under which no permutation changes a logit, and its errors.

    Raises:
        UnknownLayoutError: if no labelling passes, or if another one passes too.
    """
    family = model.config.model_type
    tests = _PermutationTests(model, options, sizes, kind_of, tokens)
    plausible = (0,) * len(options)
    # The product of all choices is far too large to try. An axis that fails concerns a few modules, so only those are
    # varied, and only for the axes that fail; the result must then pass for all.
    failing = [axis for axis in tests.axes if not tests.passes(plausible, [axis])]
    picks: tuple[int, ...] | None = plausible
    if failing:
        slots = [slot for slot in range(len(options)) if any(tests.concerns(slot, axis) for axis in failing)]
        picks = next((picks for picks in _by_plausibility(options, slots) if tests.passes(picks, failing)), None)
    if picks is None or not tests.passes(picks, tests.axes):
        raise UnknownLayoutError(
            f"{family}: permuting {', '.join(failing)} changes the logits however its weights are read, so that axis "
            "is not interchangeable or an inner order is missing in hf_warmscale/architecture/layouts.py."
        )
    # A labelling that passes is not enough: if another pick passed too, the proof could not tell them apart.
    for slot, ways in enumerate(options):
        concerned = [axis for axis in tests.axes if tests.concerns(slot, axis)]
        for other in set(range(len(ways))) - {picks[slot]}:
            if tests.passes((*picks[:slot], other, *picks[slot + 1 :]), concerned):
                raise UnknownLayoutError(
                    f"{family}: {', '.join(ways[0])} can be read in two ways that no permutation tells apart; "
                    "add its inner order to hf_warmscale/architecture/layouts.py."
                )
    return tests.labels(picks), {axis: tests.error(picks, axis) for axis in tests.axes}


def confirm_labels(
    model: PreTrainedModel, labels: Labels, sizes: Mapping[Axis, int], kind_of: KindOf, tokens: torch.Tensor
) -> dict[Axis, float]:
    """Prove labels on a model of other sizes than those they were chosen on; return the errors.

    At one size a constant of the family can pass for an axis: CodeGen's four groups of heads for four heads.

    Args:
        model (`PreTrainedModel`): a tiny random model in float64.
        labels (`Mapping[str, tuple[Dimension, ...]]`): by kind of parameter.
        sizes (`Mapping[Axis, int]`): the sizes of the model.
        kind_of (`Callable`): see `KindOf`.
        tokens (`torch.Tensor`): token ids `[batch, tokens]`.

    Raises:
        UnknownLayoutError: if permuting an axis changes the logits.
    """
    tests = _PermutationTests(model, [[labels]], sizes, kind_of, tokens)
    errors = {axis: tests.error((0,), axis) for axis in tests.axes}
    for axis, error in errors.items():
        if error > TOLERANCE:
            raise UnknownLayoutError(
                f"{model.config.model_type}: its weights can be read at one size of {axis} and not at another, so an "
                "inner order is missing in hf_warmscale/architecture/layouts.py."
            )
    return errors


class _PermutationTests:
    """The permutation tests of labellings of one model; a labelling is one pick for every kind of module."""

    def __init__(
        self,
        model: PreTrainedModel,
        options: Sequence[Sequence[Labels]],
        sizes: Mapping[Axis, int],
        kind_of: KindOf,
        tokens: torch.Tensor,
    ) -> None:
        self.axes = [axis for axis in PROVED_AXES if axis in sizes]
        self._model, self._options, self._sizes, self._tokens = model, options, sizes, tokens
        self._kinds = {name: kind_of(name) for name in named_state(model)}
        self._logits = logits_of(model, tokens)
        # Each error costs a forward pass, and the same picks are asked for several times.
        self._errors: dict[tuple[tuple[int, ...], Axis], float] = {}

    def labels(self, picks: Sequence[int]) -> Labels:
        """Return the labels by kind of parameter."""
        return {
            kind: label for ways, pick in zip(self._options, picks, strict=True) for kind, label in ways[pick].items()
        }

    def error(self, picks: tuple[int, ...], axis: Axis) -> float:
        """Return the relative change of the logits when `axis` is permuted."""
        if (picks, axis) not in self._errors:
            by_kind = self.labels(picks)
            labels = {name: by_kind[kind] for name, kind in self._kinds.items()}
            error = permutation_error(self._model, labels, self._sizes, axis, self._tokens, self._logits)
            self._errors[picks, axis] = error
        return self._errors[picks, axis]

    def passes(self, picks: tuple[int, ...], axes: Sequence[Axis]) -> bool:
        """Tell whether no permutation of any of `axes` changes the logits."""
        return all(self.error(picks, axis) <= TOLERANCE for axis in axes)

    def concerns(self, slot: int, axis: Axis) -> bool:
        """Tell whether the ways to label a module place `axis` differently."""
        # The permutation of key-value heads moves query heads with them; see `axis_permutations`.
        moved = {Axis.HEADS, Axis.KV_HEADS} if axis is Axis.KV_HEADS else {axis}
        places = {
            str([[[f in moved for f in b.factors] for b in dim] for label in way.values() for dim in label])
            for way in self._options[slot]
        }
        return len(places) > 1


def _by_plausibility(options: Sequence[Sequence[Labels]], slots: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield picks that differ from the most plausible ones in some of `slots`, in few places first."""
    # By the number of deviations: the plausible labelling is rarely wrong in more than a place or two, and the
    # attempts are limited.
    several = [slot for slot in slots if len(options[slot]) > 1]
    deviating = (
        dict(zip(places, picks, strict=True))
        for count in range(1, len(several) + 1)
        for places in combinations(several, count)
        for picks in product(*(range(1, len(options[slot])) for slot in places))
    )
    for chosen in islice(deviating, MAX_ATTEMPTS):
        yield tuple(chosen.get(slot, 0) for slot in range(len(options)))


def _projection_options(
    own: Mapping[str, str], choices: Choices, output: int, *, reads_stream: bool
) -> list[dict[str, tuple[Dimension, ...]]]:
    weight = choices[own["weight"]]
    ranked = []
    for label in product(*weight):
        reads_hidden, writes_hidden = _is_hidden(label[1 - output]), _is_hidden(label[output])
        # A projection of the stream writes an inner axis; any other one writes back to the stream.
        implausible = (reads_hidden != reads_stream) + (writes_hidden == reads_stream)
        way = {own["weight"]: label}
        if "bias" in own:
            # The bias is not a choice of its own: it lies along the output of its matrix.
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
