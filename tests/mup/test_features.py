"""What a transformers model must be able to do, a muP model does: caches, backends, compilation, adapters."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_warmscale.mup import mup_param_groups
from tests.conftest import perturb
from tests.mup.tiny import ROW, tiny_mup

IDS = ROW[None]


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=ids).logits
    return result


# flex attention asks torch for a compiled mask in a way that torch calls old
@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_attention_backends_agree(implementation: str) -> None:
    """On 128 tokens: on a CPU, flex attention is off for less than a whole block, in a stock Llama too."""
    model = tiny_mup(max_position_embeddings=128)
    perturb(model)
    ids = torch.arange(128)[None] % 48
    model.set_attn_implementation("eager")
    expected = logits(model, ids)
    model.set_attn_implementation(implementation)
    with torch.compiler.set_stance("force_eager"):  # what is scaled and masked, not the C++ that torch makes of it
        assert torch.allclose(logits(model, ids), expected, atol=1e-5)


def test_generation_with_and_without_cache_is_the_same() -> None:
    model: Any = tiny_mup(tie_word_embeddings=True)
    perturb(model)
    model.train(False)
    options = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with_cache, without = (model.generate(IDS[:, :6], use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    for one, two in zip(with_cache.logits, without.logits, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_checkpointed_gradients_are_the_same() -> None:
    model = tiny_mup()
    perturb(model)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_bfloat16_autocast_trains() -> None:
    """As float32 does: it begins at the same loss, to rounding, and gains most of what float32 gains."""

    def losses(autocast: bool) -> list[float]:
        torch.manual_seed(0)
        model = tiny_mup()
        optimizer = torch.optim.AdamW(mup_param_groups(model, lr=1e-2))
        found = []
        for _ in range(8):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = model(input_ids=IDS, labels=IDS).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    half, full = losses(True), losses(False)
    assert half[0] == pytest.approx(full[0], rel=2**-7)
    assert half[0] - half[-1] > 0.5 * (full[0] - full[-1]) > 0


def test_compiled_model_is_the_same() -> None:
    model = tiny_mup(num_hidden_layers=2)
    perturb(model)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")  # one graph; its C++ is torch's matter
    with torch.no_grad():
        assert torch.allclose(compiled(input_ids=IDS).logits, logits(model), atol=1e-5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in mup_param_groups(compiled, lr=1e-2)]
    assert groups == [[names[id(p)] for p in group["params"]] for group in mup_param_groups(model, lr=1e-2)]


# peft reads a property under its old name
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_merged_adapters_are_the_unmerged_ones(tied: bool) -> None:
    """LoRA on every linear layer, and on an untied readout: no multiplier hides inside a layer."""
    model = tiny_mup(tie_word_embeddings=tied)
    perturb(model)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets + ([] if tied else ["lm_head"])))
    perturb(adapted)
    adapted.train(False)
    unmerged = logits(adapted)
    assert torch.allclose(logits(adapted.merge_and_unload()), unmerged, atol=2e-5)


def test_the_stock_class_generates_the_same(tmp_path: object) -> None:
    model: Any = tiny_mup()
    perturb(model)
    model.train(False)
    model.save_pretrained(str(tmp_path))
    stock: Any = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(IDS[:, :6], **options), stock.generate(IDS[:, :6], **options))


@pytest.mark.parametrize("mean_resizing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_vocabulary_can_be_resized(tied: bool, mean_resizing: bool) -> None:
    model = tiny_mup(tie_word_embeddings=tied)
    perturb(model)
    before, size = logits(model), model.config.vocab_size
    model.resize_token_embeddings(size + 8, mean_resizing=mean_resizing)
    assert torch.equal(logits(model)[..., :size], before)
    assert model.config.vocab_size == size + 8
