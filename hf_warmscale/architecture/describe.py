"""Describe a causal LM: probe its shapes, observe a tiny copy, choose among the layouts that fit, and prove it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import prod, sqrt
from typing import Literal

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture.fields import (
    depth_of,
    experts_per_token,
    find_field,
    literal_values,
    per_layer_fields,
)
from hf_warmscale.architecture.labelling import (
    KindOf,
    choose_labels,
    confirm_labels,
    field_of_kinds,
    kind_of,
    kinds_of_blocks,
    label_options,
)
from hf_warmscale.architecture.layouts import UnknownLayoutError, heads_differ
from hf_warmscale.architecture.model_map import Axis, ModelMap, NormMap, ParameterMap
from hf_warmscale.architecture.observe import (
    embedding_scale,
    observe_norms,
    observe_stream_gains,
    sample_tokens,
    stream_readers,
    trace,
)
from hf_warmscale.architecture.probe import SizeLaw, probe
from hf_warmscale.architecture.proof import random_model
from hf_warmscale.architecture.roles import Labelled, axes_in, label_parameter
from hf_warmscale.architecture.tiny import OTHER, TINY, axes_of, build_meta, named_state, on_cpu, tiny_config
from hf_warmscale.compat.transformers import short_scans

MAX_TINY_PARAMETERS = 30_000_000
"""The proof runs the tiny model some dozen times, in float64."""

_LAYERS_TRIED = (2, 4, 8)


@dataclass(frozen=True)
class Template:
    """The description that all models of one architecture share, whatever their sizes.

    Args:
        law (`SizeLaw`): how sizes follow from one another.
        layer_path (`str`): the path of the list of blocks.
        kinds (`str` or `None`): the list by layer that tells blocks apart (see `field_of_kinds`).
        parameters (`Mapping[str, Labelled]`): by kind of name (see `kind_of`).
        stream_gains (`frozenset[str]`): the kinds of names of what multiplies the stream.
        norms (`Mapping[str, NormMap]`): by kind of path.
        axes (`frozenset[Axis]`): the axes that its weights have.
        embedding_scale (`str` or `None`): see `ModelMap`.
        proof (`Mapping[Axis, float]`): see `ModelMap`.
        smallest (`PreTrainedConfig`): see `ModelMap.proved_on`.
    """

    law: SizeLaw
    layer_path: str
    kinds: str | None
    parameters: Mapping[str, Labelled]
    stream_gains: frozenset[str]
    norms: Mapping[str, NormMap]
    axes: frozenset[Axis]
    embedding_scale: Literal["sqrt"] | None
    proof: Mapping[Axis, float]
    smallest: PreTrainedConfig


class _TooLargeError(UnknownLayoutError):
    """The smallest model that a config allows is too large for a proof."""


def describe(config: PreTrainedConfig) -> ModelMap:
    """Describe a causal language model: every parameter, the axis of each of its dimensions, and its role.

    Instantiates the architecture on the meta device, changes one size at a time and reads the axes from the shapes. If
    several layouts fit, a tiny random float64 model decides: its logits must not change when an axis is permuted
    wherever the map names it. The map is proved again at other sizes. No weights are read, and the model of `config`
    is never allocated.

    Args:
        config (`PreTrainedConfig`): the config of any causal LM that transformers can build.

    Returns:
        `ModelMap`: with the errors of the proof, relative to the largest logit, in `proof`.

    Raises:
        ValueError: if a tensor follows no known layout, or if the map fails its proof.

    Example:

    ```python
    >>> from transformers import LlamaConfig
    >>> from hf_warmscale import describe
    >>> model_map = describe(LlamaConfig())
    >>> model_map.parameters["model.layers.0.self_attn.o_proj.weight"].reads("num_attention_heads")
    True
    ```
    """
    with on_cpu():
        stock = _stock_config(config)
        return _describe(_Keyed(_content(stock), stock))


@dataclass(frozen=True)
class _Keyed:
    """A config that equals another one of the same content; a config itself has no hash."""

    content: str
    config: PreTrainedConfig = field(compare=False)


@lru_cache(maxsize=64)
def _describe(keyed: _Keyed) -> ModelMap:
    """Describe a stock config from as few layers as show all of its blocks."""
    config = keyed.config
    model = _build_full(config)
    failure: ValueError | None = None
    for layers in _layers_to_try(config):
        try:
            return _expand(config, _template_of(config, layers), model)
        except _TooLargeError as error:
            raise failure or error from None  # more blocks were tried only because fewer had failed
        except UnknownLayoutError:
            raise
        except ValueError as error:  # the blocks may differ more than so few layers show
            failure = error
    assert failure is not None
    raise failure


def _stock_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config, with literal sizes, as the class that transformers registers (a subclass builds the same)."""
    if config.model_type not in CONFIG_MAPPING:
        raise ValueError(f"The model type {config.model_type!r} is not known to transformers, so it is not described.")
    for axis in (Axis.LAYERS, Axis.HIDDEN, Axis.HEADS, Axis.VOCAB):
        if find_field(config, axis) is None:
            raise ValueError(_why_not_described(config, axis))
    return CONFIG_MAPPING[config.model_type].from_dict(literal_values(config))


def _why_not_described(config: PreTrainedConfig, axis: Axis) -> str:
    if config.get_text_config() is not config:
        return (
            f"A {config.model_type} model wraps a language model with other parts; save its language model, which has "
            "the config text_config, as a checkpoint of its own and use that."
        )
    return f"{config.model_type} has no config field for {axis}, so it is not described; use another family."


def _layers_to_try(config: PreTrainedConfig) -> list[int]:
    depth = depth_of(config)
    # The full depth comes last: the kinds of blocks may repeat with any period, or not at all.
    return sorted({layers for layers in (*_LAYERS_TRIED, depth) if layers <= max(depth, _LAYERS_TRIED[0])})


def _template_of(config: PreTrainedConfig, layers: int) -> Template:
    """Return the template of a config; configs that differ in sizes only share it."""
    sizes = {axis: TINY[axis] for axis in axes_of(config)} | {Axis.LAYERS: layers}
    try:
        tiny = tiny_config(config, sizes)
        with short_scans(tiny):
            return _template(_content(tiny), layers)
    except ValueError:
        raise
    except Exception as error:  # anything may go wrong in a family's own code at sizes it was not made for
        raise ValueError(
            f"{config.model_type} cannot be built or run at a tiny size, so it is not described: {_first_line(error)}"
        ) from error


def _content(config: PreTrainedConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


@lru_cache(maxsize=64)
def _template(tiny: str, layers: int) -> Template:
    values = json.loads(tiny)
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    shapes = probe(config, layers)
    smallest = tiny_config(config, {**shapes.law.settings(shapes.sizes), Axis.LAYERS: layers})
    if (size := build_meta(smallest).num_parameters()) > MAX_TINY_PARAMETERS:
        raise _TooLargeError(
            f"{config.model_type} still has {size:,} parameters at the smallest sizes, so nothing is proved about it; "
            "set the sizes that have no axis (ranks, further vocabularies) smaller."
        )
    model = random_model(smallest)
    layer_path = find_layers(model, layers)
    tokens = sample_tokens(shapes.sizes[Axis.VOCAB])
    record = trace(model, tokens)
    field_name = field_of_kinds(smallest, shapes.choices, layer_path)
    kind = partial(kind_of, layer_path=layer_path, blocks=kinds_of_blocks(smallest, field_name))
    options = label_options(model, shapes.choices, stream_readers(model, record, layer_path), kind)
    # With one token there is nothing to attend to, so that a bias of each head's own cannot show.
    proof_tokens = tokens[:, :1] if heads_differ(config) else tokens
    kinds, proof = choose_labels(model, options, shapes.sizes, kind, proof_tokens)
    # Heads keep their size: a family that derives it may hold it in a field of its rotary embedding too.
    elsewhere = shapes.law.complete(
        {axis: size if axis is Axis.HEAD_DIM else OTHER[axis] for axis, size in shapes.sizes.items()}
    )
    other = random_model(tiny_config(config, {**shapes.law.settings(elsewhere), Axis.LAYERS: layers}))
    confirmed = confirm_labels(other, kinds, elsewhere, kind, proof_tokens)
    labels = {name: kinds[kind(name)] for name in named_state(model)}

    def on_stream(path: str) -> bool:
        return any(Axis.HIDDEN in axes_in(labels[name]) for name in labels if name.rpartition(".")[0] == path)

    # Only now: whether a norm lies on the stream is known from the proved labels.
    norms = observe_norms(model, record, lambda path: _layer_of(path, layer_path), on_stream)
    labelled = {name: label_parameter(model, name, labels, norms) for name in labels}
    in_blocks = {name: label for name, label in labelled.items() if _layer_of(name, layer_path) is not None}
    writers = {
        name for name, label in in_blocks.items() if label.writes(Axis.HIDDEN) and name.rpartition(".")[0] not in norms
    }
    blocks = [f"{layer_path}.{layer}" for layer in range(layers)]
    return Template(
        law=shapes.law,
        layer_path=layer_path,
        kinds=field_name,
        parameters={kind(name): label for name, label in labelled.items()},
        stream_gains=frozenset(map(kind, observe_stream_gains(model, tokens, blocks, writers))),
        norms={kind(f"{path}."): norm for path, norm in norms.items()},
        axes=frozenset(shapes.sizes),
        embedding_scale=_scaling(model, tokens, f"{layer_path}.0", shapes.sizes[Axis.HIDDEN]),
        proof={axis: max(error, confirmed[axis]) for axis, error in proof.items()},
        smallest=smallest,
    )


def _expand(config: PreTrainedConfig, template: Template, model: PreTrainedModel) -> ModelMap:
    """Give every parameter of the full model its place, and check that the map predicts every shape."""
    state = {name: tuple(tensor.shape) for name, tensor in named_state(model).items()}
    kind = partial(kind_of, layer_path=template.layer_path, blocks=kinds_of_blocks(config, template.kinds))
    parameters = {name: _place(config, template, kind, name) for name in state}
    sizes = _full_sizes(config, template, parameters, state)
    for name, shape in state.items():
        # The template was proved on few blocks. The shapes of the full model show whether the rest follows it.
        predicted = parameters[name].shape(sizes)
        if predicted != shape:
            raise ValueError(
                f"{config.model_type}: {name} has shape {list(shape)} where its axes predict {list(predicted)}, so "
                "its blocks differ in a way that is not known."
            )
    modules = dict.fromkeys(parameter.module for parameter in parameters.values())
    norms = {module: norm for module in modules if (norm := template.norms.get(kind(f"{module}.")))}
    return ModelMap(
        model_type=config.model_type,
        sizes=sizes,
        fields={axis: field for axis in sizes if (field := find_field(config, axis)) is not None},
        derived=template.law.derived,
        frozen={Axis.HEADS: "its attention adds a bias of its own to each head"} if heads_differ(config) else {},
        parameters=parameters,
        tied=tied_names(model),
        stream_gains=frozenset(name for name in state if kind(name) in template.stream_gains),
        norms={
            module: replace(norm, module=module, layer=_layer_of(module, template.layer_path))
            for module, norm in norms.items()
        },
        layer_path=template.layer_path,
        layer_fields=per_layer_fields(config),
        embedding_scale=template.embedding_scale,
        proof=template.proof,
        proved_on=template.smallest,
        experts_per_token=experts_per_token(config) if Axis.EXPERTS in sizes else None,
    )


def _place(config: PreTrainedConfig, template: Template, kind: KindOf, name: str) -> ParameterMap:
    label = template.parameters.get(kind(name))
    if label is None:
        raise ValueError(f"{config.model_type}: {name} does not occur in a small copy of the model.")
    return ParameterMap(
        name=name,
        role=label.role,
        component=label.component,
        dimensions=label.dimensions,
        fan_in=label.fan_in,
        fan_out=label.fan_out,
        layer=_layer_of(name, template.layer_path),
        module=name.rpartition(".")[0],
    )


def _full_sizes(
    config: PreTrainedConfig,
    template: Template,
    parameters: Mapping[str, ParameterMap],
    state: Mapping[str, tuple[int, ...]],
) -> dict[Axis, int]:
    """Take the sizes from the config's fields, and where a field is empty or derived, from the shapes."""
    values = config.to_dict()
    sizes = {Axis.LAYERS: depth_of(config)}
    for axis in template.axes - template.law.derived:
        value = values.get(find_field(config, axis) or "")
        if isinstance(value, int) and (axis is not Axis.HEAD_DIM or value > 0):
            sizes[axis] = value
    solved = True
    while solved:
        solved = False
        for name, parameter in parameters.items():
            for dimension, size in zip(parameter.dimensions, state[name], strict=True):
                factors = dimension[0].factors
                unknown = [factor for factor in factors if isinstance(factor, Axis) and factor not in sizes]
                # One equation at a time: a dimension of equal blocks with a single unknown axis gives it by division.
                # An axis found here may leave another dimension with a single unknown, hence the loop.
                if len(unknown) == 1 and len(set(dimension)) == 1:
                    known = prod(
                        sizes[factor] if isinstance(factor, Axis) else factor
                        for factor in factors
                        if factor != unknown[0]
                    )
                    sizes[unknown[0]] = size // (known * len(dimension))
                    solved = True
    # An axis that follows from others need not occur in any weight: Qwen3-Next of two blocks has no attention.
    occurring = frozenset[Axis]().union(*(parameter.axes() for parameter in parameters.values()))
    missing = template.axes - set(sizes) - (template.law.derived - occurring)
    if missing:
        raise ValueError(f"{config.model_type}: the config does not tell {', '.join(sorted(missing))}; set it.")
    return {axis: sizes[axis] for axis in Axis if axis in sizes}


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return, for each further name under which a checkpoint may hold a shared weight, its first name."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name: first[id(tensor)]
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) in first and first[id(tensor)] != name
    }


def _build_full(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        return build_meta(config)
    except Exception as error:  # a family's own code may raise anything on a config that does not fit together
        raise ValueError(
            f"{config.model_type}: no causal LM can be built of this config: {_first_line(error)}"
        ) from error


def find_layers(model: PreTrainedModel, layers: int | None = None) -> str:
    """Return the path of the list of blocks, the outermost one if there are several.

    Args:
        model (`PreTrainedModel`): the model.
        layers (`int`, *optional*): the number of blocks; that of the config by default.

    Raises:
        ValueError: if no list of modules with parameters has this length.

    Example:

    ```python
    >>> find_layers(model)
    'model.layers'
    ```
    """
    layers = depth_of(model.config) if layers is None else layers
    stacks = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and any(True for _ in module.parameters())
    ]
    if not stacks:
        raise ValueError(
            f"A {model.config.model_type} model has no list of {layers} blocks, so its layers are not described."
        )
    shallowest: str = min(stacks, key=lambda path: path.count("."))
    return shallowest


def _layer_of(name: str, layer_path: str) -> int | None:
    if not name.startswith(f"{layer_path}."):
        return None
    index = name.removeprefix(f"{layer_path}.").partition(".")[0]
    return int(index) if index.isdigit() else None


def _scaling(
    model: PreTrainedModel, tokens: torch.Tensor, first_layer: str, hidden_size: int
) -> Literal["sqrt"] | None:
    scale = embedding_scale(model, tokens, first_layer)
    return "sqrt" if scale is not None and abs(scale / sqrt(hidden_size) - 1) < 1e-2 else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
