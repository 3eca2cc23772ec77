"""Any family in muP with its own forward pass: folding changes nothing that Adam can see."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hf_warmscale.architecture import describe
from hf_warmscale.mup import MupConfig, MupForCausalLM, Parametrization, init_mup, mup_param_groups
from hf_warmscale.mup.folded_form import folded_scalings
from hf_warmscale.mup.parameter_scaling import ParameterScaling
from tests.conftest import perturb

IDS = torch.arange(4, 28).reshape(2, 12) % 44 + 4
CONSTANTS = Parametrization(embedding_alpha=2.0, readout_alpha=3.0)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "attention_bias": True},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "olmo2": {},
    "mixtral": {"num_local_experts": 2},
    "gpt_neox": {},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def sized(family: str, width: int, layers: int, **more: Any) -> PreTrainedConfig:
    fields = {
        "vocab_size": 48,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "n_inner": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 8,
        "num_key_value_heads": width // 16,
        "max_position_embeddings": 32,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    if family != "gpt2":
        del fields["n_inner"]
    config: PreTrainedConfig = AutoConfig.for_model(family, **{**fields, **FAMILIES.get(family, {}), **more})
    return config


def build(config: PreTrainedConfig) -> Any:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, experts_implementation="eager").train()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_folding_follows_the_forward_multipliers(family: str, float64_norms: None) -> None:
    """Five AdamW steps with the multipliers in the forward pass (hooks), and in the weights: one trajectory."""
    config, base = sized(family, 32, 4), sized(family, 16, 2)
    parametrization = CONSTANTS
    described = describe(config)
    scalings = folded_scalings(described, describe(base), parametrization)
    folded, hooked = build(config).double(), build(config).double()
    perturb(hooked)
    offsets = {f"{norm.module}.weight": norm.gain_offset for norm in described.norms.values()}
    with torch.no_grad():
        for (name, ours), theirs in zip(folded.named_parameters(), hooked.parameters(), strict=True):
            offset = offsets.get(name, 0.0)
            ours.copy_((theirs + offset) * scalings[name].absorbed - offset)
    hook_multipliers(hooked, scalings, tied=bool(described.tied))
    plain = {name: ParameterScaling(place.role, place.ratios) for name, place in scalings.items()}
    optimizers = [
        torch.optim.AdamW(one_group_each(model, where, parametrization))
        for model, where in ((folded, scalings), (hooked, plain))
    ]
    for _ in range(5):
        losses = [model(input_ids=IDS, labels=IDS).loss for model in (folded, hooked)]
        assert abs(losses[0] - losses[1]) < 1e-10
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def one_group_each(
    model: nn.Module, scalings: dict[str, ParameterScaling], parametrization: Parametrization
) -> list[dict[str, Any]]:
    groups = []
    for name, parameter in model.named_parameters():
        own = scalings[name].factors(parametrization)
        groups.append(
            {
                "params": [parameter],
                "lr": 1e-2 * own.lr,
                "weight_decay": 0.1 * own.weight_decay,
                "eps": 1e-4 * own.eps,
            }
        )
    return groups


def hook_multipliers(model: Any, scalings: dict[str, ParameterScaling], *, tied: bool) -> None:
    """Multiply the output of every module by the factor that its weights absorbed; in a tied model, the logits too."""
    absorbed = {name.rpartition(".")[0]: place.absorbed for name, place in scalings.items()}
    for name, place in scalings.items():  # experts: what they write is what counts
        if name.endswith("experts.down_proj"):
            absorbed[name.rpartition(".")[0]] = place.absorbed
    if tied:
        (final,) = {module for module in absorbed if scaling_role(scalings, module) == "final_norm"}
        embedding = next(name for name in scalings if model.get_parameter(name) is model.get_input_embeddings().weight)
        logits = CONSTANTS.multiplier("readout", scalings[embedding].ratios)
        del absorbed[final]
        model.get_output_embeddings().register_forward_hook(lambda *call: call[2] * logits)
    for path, factor in absorbed.items():
        if factor != 1:
            model.get_submodule(path).register_forward_hook(lambda *call, factor=factor: call[2] * factor)


def scaling_role(scalings: dict[str, ParameterScaling], module: str) -> str:
    return scalings[f"{module}.weight"].role if f"{module}.weight" in scalings else ""


ROOT = 2**0.5
ABSORBED = {
    "llama": {"embed_tokens": 2, "o_proj": 1 / 2, "down_proj": 1 / 2, "model.norm": 3 / 4},
    "qwen3": {"embed_tokens": 2, "o_proj": 1 / 2, "down_proj": 1 / 2, "lm_head": 3 / 2},
    "gemma2": {
        "embed_tokens": ROOT,
        "post_attention_layernorm": 1 / 2,
        "post_feedforward_layernorm": 1 / 2,
        "model.norm": 3 / 2 / ROOT,
    },
    "olmo2": {
        "embed_tokens": 2,
        "post_attention_layernorm": 1 / 2,
        "post_feedforward_layernorm": 1 / 2,
        "lm_head": 3 / 2,
    },
    "mixtral": {"embed_tokens": 2, "o_proj": 1 / 2, "experts.down_proj": 1 / 2, "lm_head": 3 / 2},
    "gpt_neox": {"embed_in": 2, "attention.dense": 1 / 2, "dense_4h_to_h": 1 / 2, "lm_head": 3 / 2},
    "gpt2": {"wte": 2, "wpe": 2, "attn.c_proj": 1 / 2, "mlp.c_proj": 1 / 2, "ln_f": 3 / 4},
}
"""What each weight takes over at twice the width and depth, with alphas of 2 and 3; Gemma's sqrt(hidden) is 2^1/2."""


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_each_weight_absorbs(family: str) -> None:
    described, base = describe(sized(family, 32, 4)), describe(sized(family, 16, 2))
    scalings = folded_scalings(described, base, CONSTANTS)
    for name, scaling in scalings.items():
        path = name.removesuffix(".weight").removesuffix(".bias")
        expected = [value for part, value in ABSORBED[family].items() if path.endswith(part)]
        assert scaling.absorbed == pytest.approx(expected[0] if expected else 1, rel=1e-15), name


LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
MINICPM: dict[str, Any] = {**LATENT, "dim_model_base": 16, "tie_word_embeddings": False}


@pytest.mark.parametrize(("rule", "writer"), [("completep", 1 / 2), ("mup", 1)])
def test_what_a_family_scales_itself_is_not_scaled_twice(rule: Any, writer: float) -> None:
    """MiniCPM divides its logits by hidden / dim_model_base and its branches by the root of the depth."""
    wide, base = (
        describe(sized("minicpm3", width, layers, num_key_value_heads=width // 8, **MINICPM))
        for width, layers in ((64, 4), (16, 1))
    )
    absorbed = {name: place.absorbed for name, place in folded_scalings(wide, base, Parametrization(rule)).items()}
    assert absorbed["lm_head.weight"] == 1
    assert absorbed["model.layers.0.mlp.down_proj.weight"] == writer


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_base_shape_starts_as_the_family_itself(family: str) -> None:
    config = sized(family, 16, 2, tie_word_embeddings=False)
    own, ours = build(config), build(config)
    torch.manual_seed(2)
    own.apply(own._init_weights)
    torch.manual_seed(2)
    init_mup(ours, base_config=config, parametrization=Parametrization("completep"))
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), ours.parameters(), strict=True))
    groups = mup_param_groups(ours, base_config=config, lr=1e-2, weight_decay=0.1, eps=1e-8)
    assert {(group["lr"], group["weight_decay"], group["eps"]) for group in groups} == {
        (1e-2, 0.1, 1e-8),
        (1e-2, 0.0, 1e-8),
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_describing_draws_nothing_from_the_global_random_state(family: str) -> None:
    """So that an init is the same whether the family was described before or not."""
    config = sized(family, 32, 2, initializer_range=0.0123)  # a value of its own, which no cache holds
    before = torch.get_rng_state()
    describe(config)
    assert torch.equal(torch.get_rng_state(), before)


def test_init_of_gemma_compensates_its_own_embedding_scale_and_norm_offset() -> None:
    """Four times the width: the family multiplies the embedding by 2 more, and stores gains as g - 1."""
    model = init_mup(build(sized("gemma2", 128, 4)), base_config=sized("gemma2", 32, 2))
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert float(values["model.embed_tokens.weight"].std()) == pytest.approx(0.02 / 2, rel=0.03)
    assert float(values["model.norm.weight"].mean()) == 2 / 4 - 1
    assert float(values["model.layers.0.input_layernorm.weight"].mean()) == 0
    assert float(values["model.layers.0.post_attention_layernorm.weight"].mean()) == 1 / 2 - 1
    assert float(values["model.layers.0.mlp.down_proj.weight"].std()) == pytest.approx(0.02 / 2, rel=0.05)


def test_a_llama_in_mup_is_the_granite_form_with_its_multipliers_folded() -> None:
    """Init and rates of the two realisations differ by the multiplier alone."""
    entry = {"base_hidden_size": 16, "base_num_hidden_layers": 2}
    granite = MupForCausalLM(
        MupConfig(
            vocab_size=48, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=8, mup=entry
        )
    )
    llama = init_mup(
        build(sized("llama", 64, 4, tie_word_embeddings=False, attention_bias=False, num_key_value_heads=8)),
        base_config=sized("llama", 16, 2, tie_word_embeddings=False, attention_bias=False, num_key_value_heads=2),
    )
    base = sized("llama", 16, 2, tie_word_embeddings=False, attention_bias=False, num_key_value_heads=2)
    ours, theirs = rates(granite), rates(llama, base_config=base)
    for name, (lr, weight_decay, eps) in ours.items():
        factor = (
            1 / 4 if name == "lm_head.weight" else 1 / 2 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
        )
        assert theirs[name] == pytest.approx((lr * factor, weight_decay / factor, eps / factor), rel=1e-15)


def rates(model: nn.Module, **options: Any) -> dict[str, tuple[float, float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = mup_param_groups(model, lr=1e-2, weight_decay=0.1, eps=1e-8, **options)
    return {names[id(p)]: (g["lr"], g["weight_decay"], g["eps"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize(
    ("config", "base", "options", "message"),
    [
        (sized("llama", 16, 2), sized("llama", 32, 2), {}, "hidden_size is 32, wider than the model's 16"),
        (sized("llama", 32, 2), sized("qwen3", 16, 2), {}, "base config is of the family qwen3, the model of llama"),
        (sized("llama", 32, 2), sized("llama", 16, 2, head_dim=4), {}, "head_dim of 4, the model of 8"),
        (sized("llama", 32, 2), sized("llama", 16, 2), {"zero_init_readout": True}, "needs an untied readout"),
        (sized("gpt2", 32, 2), sized("gpt2", 16, 2), {"zero_init_query": True}, "not matrices of their own"),
        (
            sized("granite", 32, 2),
            sized("granite", 16, 2, logits_scaling=2.0),
            {},
            "logits_scaling is 2.0, the model's 1.0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    config: PreTrainedConfig, base: PreTrainedConfig, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        init_mup(build(config), base_config=base, parametrization=Parametrization(**options))


def test_groups_need_a_base_and_a_known_parameter() -> None:
    model = build(sized("llama", 16, 2))
    with pytest.raises(ValueError, match="llama config has no mup entry; give base_config"):
        mup_param_groups(model, lr=1e-2)
    with pytest.raises(ValueError, match="learning rate is 0"):
        mup_param_groups(model, lr=0.0, base_config=model.config)
    model.value_head = nn.Linear(16, 1)
    with pytest.raises(ValueError, match=r"muP rules do not cover the parameter value_head\.weight"):
        mup_param_groups(model, lr=1e-2, base_config=model.config)


@pytest.mark.parametrize("where", ["meta", "ZeRO-3"])
def test_weights_that_are_not_there_are_refused(where: str) -> None:
    model = build(sized("llama", 64, 2))
    if where == "meta":
        model = model.to("meta")
    else:
        model.get_parameter("model.norm.weight").data = torch.empty(0)  # what zero.Init leaves on every rank
    with pytest.raises(ValueError, match=f"{where}.*before it is sharded"):
        init_mup(model, base_config=sized("llama", 32, 2))
