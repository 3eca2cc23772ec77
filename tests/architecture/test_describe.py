"""Every family is described and proved; what is not certain is refused by name."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, GPT2Config, LlamaConfig, PreTrainedConfig, SmolLM3Config

from hf_warmscale.architecture import Axis, ModelMap, NormMap, describe, per_layer_fields, resized_config
from hf_warmscale.architecture.observe import logits_of, sample_tokens
from hf_warmscale.architecture.proof import TOLERANCE, random_model
from hf_warmscale.architecture.tiny import build_meta, tiny_config

FAMILIES = [
    "cohere",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
]


def default(model_type: str, **changes: Any) -> PreTrainedConfig:
    return CONFIG_MAPPING[model_type](**changes)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[PreTrainedConfig, ModelMap]:
    config = default(request.param)
    return config, describe(config)


def test_every_parameter_is_described_with_its_shape(family: tuple[PreTrainedConfig, ModelMap]) -> None:
    config, model_map = family
    shapes = {name: tuple(parameter.shape) for name, parameter in build_meta(config).named_parameters()}
    described = {name: p.shape(model_map.sizes) for name, p in model_map.parameters.items() if p.role != "buffer"}
    assert described == shapes


def test_permuting_an_axis_leaves_the_logits(family: tuple[PreTrainedConfig, ModelMap]) -> None:
    _, model_map = family
    assert {Axis.VOCAB, Axis.HIDDEN, Axis.INTERMEDIATE, Axis.HEADS} <= set(model_map.proof)
    for axis, error in model_map.proof.items():
        assert error <= TOLERANCE, axis


def test_every_matrix_has_a_direction_and_every_block_one_reader_and_one_writer(
    family: tuple[PreTrainedConfig, ModelMap],
) -> None:
    _, model_map = family
    for parameter in model_map.with_role("hidden", "readout", "router"):
        assert parameter.fan_in is not None and parameter.fan_out is not None, parameter.name
    block = [p for p in model_map.parameters.values() if p.layer == 0 and p.role == "hidden"]
    for component in ("attention", "mlp"):
        mine = [p for p in block if p.component == component]
        assert any(p.reads(Axis.HIDDEN) for p in mine), component
        assert any(p.writes(Axis.HIDDEN) for p in mine), component


def test_one_final_norm_and_one_embedding_of_tokens(family: tuple[PreTrainedConfig, ModelMap]) -> None:
    _, model_map = family
    assert len(model_map.with_role("final_norm")) == 1
    vocabulary = [p for p in model_map.with_role("embedding", "readout") if Axis.VOCAB in p.axes()]
    assert len(vocabulary) == 2 - bool(model_map.tied)


def test_sizes_are_those_of_the_config() -> None:
    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    )
    model_map = describe(config)
    assert model_map.sizes[Axis.HEAD_DIM] == 128
    assert model_map.sizes[Axis.LAYERS] == 80
    assert model_map.num_parameters() == build_meta(config).num_parameters()


def test_an_empty_field_is_read_off_the_shapes() -> None:
    model_map = describe(GPT2Config(n_embd=48, n_head=3, n_layer=2))
    assert model_map.sizes[Axis.INTERMEDIATE] == 192
    assert model_map.fields[Axis.INTERMEDIATE] == "n_inner"
    assert model_map.derived == {Axis.HEAD_DIM}


def test_sizes_do_not_change_what_is_proved() -> None:
    small, large = (describe(default("qwen3", num_hidden_layers=layers)) for layers in (2, 3))
    assert small.proof == large.proof
    assert len(large.parameters) > len(small.parameters)


def norm_of(model_type: str, module: str) -> NormMap:
    return describe(default(model_type)).norms[module]


@pytest.mark.parametrize(
    ("model_type", "module", "position", "centered", "gain_offset"),
    [
        ("llama", "model.layers.0.input_layernorm", "pre", False, 0.0),
        ("llama", "model.norm", "final", False, 0.0),
        ("gpt2", "transformer.h.0.ln_1", "pre", True, 0.0),
        ("gemma2", "model.layers.0.input_layernorm", "pre", False, 1.0),
        ("gemma2", "model.layers.0.post_attention_layernorm", "post", False, 1.0),
        ("gemma2", "model.layers.0.pre_feedforward_layernorm", "pre", False, 1.0),
        ("gemma2", "model.layers.0.post_feedforward_layernorm", "post", False, 1.0),
        ("olmo2", "model.layers.0.post_attention_layernorm", "post", False, 0.0),
        ("olmo2", "model.layers.0.self_attn.q_norm", "inner", False, 0.0),
        ("qwen3", "model.layers.0.self_attn.k_norm", "inner", False, 0.0),
        ("gpt_neox", "gpt_neox.layers.0.post_attention_layernorm", "pre", True, 0.0),
        ("bloom", "transformer.word_embeddings_layernorm", "embedding", True, 0.0),
        ("openai-gpt", "transformer.h.0.ln_2", "residual", True, 0.0),
    ],
)
def test_norms_are_known_by_what_they_do(
    model_type: str, module: str, position: str, centered: bool, gain_offset: float
) -> None:
    norm = norm_of(model_type, module)
    assert (norm.position, norm.centered, norm.gain_offset) == (position, centered, gain_offset)


@pytest.mark.parametrize(
    ("model_type", "scale"), [("gemma", "sqrt"), ("gemma3_text", "sqrt"), ("granite", None), ("gpt2", None)]
)
def test_an_embedding_that_is_scaled_by_its_width_is_noticed(model_type: str, scale: str | None) -> None:
    assert describe(default(model_type)).embedding_scale == scale


def test_heads_with_a_bias_of_their_own_are_frozen() -> None:
    assert Axis.HEADS in describe(default("bloom")).frozen
    assert Axis.HEADS not in describe(default("gpt2")).frozen


def test_tied_names_point_to_the_parameter() -> None:
    assert describe(LlamaConfig(tie_word_embeddings=True)).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert describe(LlamaConfig(tie_word_embeddings=False)).tied == {}


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("jetmoe", "kv_proj"),
        ("mamba", "num_attention_heads"),
        ("recurrent_gemma", "input_gate_weight"),
        # Its heads lie in four groups, so that at four heads it looks like GPT-NeoX.
        ("codegen", "one size of num_attention_heads and not at another"),
    ],
)
def test_what_is_not_certain_is_refused_by_name(model_type: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        describe(default(model_type))


def test_a_config_that_fits_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no causal LM can be built"):
        describe(LlamaConfig(hidden_size=64, num_attention_heads=4, hidden_act="no-such-activation"))


def test_describing_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    describe(LlamaConfig(num_hidden_layers=2, rms_norm_eps=1e-4))
    assert torch.equal(torch.rand(1), expected)


def test_only_lists_by_layer_follow_the_depth() -> None:
    """A user's list, and one that every config has, may be as long as the model is deep."""
    values: dict[str, Any] = {"architectures": ["A", "B"], "languages": ["de", "fr"], "no_rope_layers": [1, 0]}
    config: Any = SmolLM3Config(num_hidden_layers=2, **values)
    assert set(per_layer_fields(config)) == {"layer_types", "no_rope_layers"}
    deeper: Any = resized_config(config, {Axis.LAYERS: 4})
    assert deeper.no_rope_layers == [1, 0, 1, 0] and len(deeper.layer_types) == 4
    assert deeper.architectures == ["A", "B"] and deeper.to_dict()["languages"] == ["de", "fr"]


def test_no_family_takes_a_common_list_for_one_by_layer() -> None:
    for kind in (
        "llama",
        "qwen3",
        "gemma3_text",
        "gpt_oss",
        "lfm2",
        "qwen3_next",
        "deepseek_v3",
        "gpt_neo",
        "falcon_h1",
    ):
        default = CONFIG_MAPPING[kind]()
        depth = default.num_hidden_layers
        fields = per_layer_fields(type(default).from_dict({**default.to_dict(), "architectures": ["A"] * depth}))
        assert "architectures" not in fields
        assert set(fields) == {
            name for name, value in default.to_dict().items() if isinstance(value, list) and len(value) == depth
        }


def test_a_missing_setting_is_named_also_where_more_blocks_are_too_many_for_a_proof() -> None:
    """The default config of DeepSeek-V2 does not tell how many experts a token uses."""
    with pytest.raises(ValueError, match=r"cannot be built or run at a tiny size.*NoneType"):
        describe(default("deepseek_v2"))


LATENT = {
    "num_hidden_layers": 5,
    "first_k_dense_replace": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "vocab_size": 90,
}


def test_models_of_one_architecture_share_a_proof() -> None:
    """Whatever their name, dtype, history and number of leading dense blocks; two blocks show both kinds."""
    small = {**LATENT, "q_lora_rank": 12, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "v_head_dim": 8}
    first = describe(default("deepseek_v3", **small))
    other = {"dtype": "bfloat16", "architectures": ["A"], "growth": {"exact": True}, "first_k_dense_replace": 2}
    assert describe(default("deepseek_v3", **small | other)).proof is first.proof
    assert (first.proved_on.num_hidden_layers, first.proved_on.first_k_dense_replace) == (2, 1)


def test_two_blocks_show_both_kinds_of_a_list_by_layer() -> None:
    config = default("qwen3_next", num_hidden_layers=8)
    assert tiny_config(config, {Axis.LAYERS: 2}).layer_types == ["linear_attention", "full_attention"]
    assert tiny_config(config, {Axis.LAYERS: 4}).layer_types == config.layer_types[:4]


def test_published_ranks_do_not_make_a_tiny_model_amplify_rounding() -> None:
    """The proof's bounds are relative to the logits, so a block may enlarge an error only a little."""
    model = random_model(default("deepseek_v3", **LATENT))
    tokens = sample_tokens(90)
    before = logits_of(model, tokens)
    with torch.no_grad():
        table = model.get_input_embeddings().get_parameter("weight")
        table.mul_(1 + 1e-7 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0)))
    assert (logits_of(model, tokens) - before).abs().max() < 1e-6 * before.abs().max()
