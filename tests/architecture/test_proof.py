"""The proof tells a right label from a wrong one."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from hf_warmscale.architecture import Axis, Block, Dimension, describe, flat_index
from hf_warmscale.architecture.labelling import choose_labels, kind_of
from hf_warmscale.architecture.layouts import UnknownLayoutError, candidates
from hf_warmscale.architecture.observe import logits_of, sample_tokens
from hf_warmscale.architecture.precision import StayInFloat64
from hf_warmscale.architecture.proof import TOLERANCE, permutation_error, randomize
from hf_warmscale.architecture.tiny import build

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = Axis.HIDDEN, Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_DIM


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return randomize(build(config))


def error(model: PreTrainedModel, axis: Axis, changed: Mapping[str, tuple[Dimension, ...]]) -> float:
    model_map = describe(model.config)
    labels = {name: parameter.dimensions for name, parameter in model_map.parameters.items()} | dict(changed)
    tokens = sample_tokens(model.config.vocab_size)
    return permutation_error(model, labels, model_map.sizes, axis, tokens, logits_of(model, tokens))


@pytest.mark.parametrize("axis", [Axis.VOCAB, HIDDEN, Axis.INTERMEDIATE, HEADS, KV_HEADS])
def test_right_labels_pass(llama: PreTrainedModel, axis: Axis) -> None:
    assert error(llama, axis, {}) <= TOLERANCE


@pytest.mark.parametrize("axis", [HIDDEN, HEADS])
def test_a_swapped_label_fails(llama: PreTrainedModel, axis: Axis) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    rows, columns = describe(llama.config).parameters[name].dimensions
    assert error(llama, axis, {name: (columns, rows)}) > 1e-3


def test_heads_that_leave_their_group_fail(llama: PreTrainedModel) -> None:
    """Key heads labelled as if each query head had its own: the permutation would tear the groups apart."""
    name = "model.layers.0.self_attn.k_proj.weight"
    dimensions = describe(llama.config).parameters[name].dimensions
    constant = (Block((16,)),)
    assert error(llama, KV_HEADS, {name: (constant, dimensions[1])}) > 1e-3


def test_two_readings_that_no_permutation_tells_apart_are_refused(llama: PreTrainedModel) -> None:
    """A constant of 8 in the place of the head size, which no permutation moves."""
    model_map = describe(llama.config)
    kind, name = partial(kind_of, layer_path=model_map.layer_path), "model.layers.{}.self_attn.q_proj.weight"
    labels = {kind(each): parameter.dimensions for each, parameter in model_map.parameters.items()}
    options = [[{each: label}] for each, label in labels.items() if each != name]
    right, other = {name: labels[name]}, {name: ((Block((HEADS, 8)),), labels[name][1])}
    tokens = sample_tokens(llama.config.vocab_size)
    chosen, _ = choose_labels(llama, [*options, [right]], model_map.sizes, kind, tokens)
    assert chosen == labels
    with pytest.raises(UnknownLayoutError, match=r"q_proj.weight can be read in two ways"):
        choose_labels(llama, [*options, [right, other]], model_map.sizes, kind, tokens)


def test_float32_islands_are_bridged() -> None:
    value = torch.full((1,), 1 / 3, dtype=torch.float64)
    with StayInFloat64():
        assert value.float().dtype == torch.float64
        assert value.to(torch.float32).dtype == torch.float64
        assert torch.softmax(value, 0, dtype=torch.float32).dtype == torch.float64
    assert value.float().dtype == torch.float32


def test_flat_index_composes_factors_slowest_first() -> None:
    sizes = {HEADS: 3, HEAD_DIM: 2}
    order = torch.tensor([2, 0, 1])
    fused = (Block((HEADS, 3, HEAD_DIM)),)
    whole = torch.arange(18).reshape(3, 3, 2)
    assert torch.equal(flat_index(fused, sizes, {HEADS: order}), whole[order].flatten())


def test_flat_index_keeps_blocks_apart_and_marks_what_is_new() -> None:
    gate_up = (Block((Axis.INTERMEDIATE,)), Block((Axis.INTERMEDIATE,)))
    grown = flat_index(gate_up, {Axis.INTERMEDIATE: 2}, {Axis.INTERMEDIATE: torch.tensor([0, 1, -1])})
    assert grown.tolist() == [0, 1, -1, 2, 3, -1]


def test_shapes_leave_only_the_layouts_that_fit() -> None:
    sizes = {HIDDEN: 24, HEADS: 4, KV_HEADS: 2, HEAD_DIM: 8}
    more_heads, more_keys = {**sizes, HEADS: 8}, {**sizes, KV_HEADS: 4}
    assert candidates([(sizes, 64), (more_heads, 96), (more_keys, 96)]) == [
        (Block((HEADS, HEAD_DIM)), Block((KV_HEADS, HEAD_DIM)), Block((KV_HEADS, HEAD_DIM)))
    ]
    assert candidates([(sizes, 7), (more_heads, 7)]) == [(Block((7,)),)]
    assert candidates([(sizes, 7), (more_heads, 9)]) == []
