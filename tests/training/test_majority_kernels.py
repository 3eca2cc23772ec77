"""Majority kernels start as the model they expand, train as random combinations, and fold to their mean."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel, Trainer

from hf_warmscale.training.majority_kernels import (
    MajorityKernel,
    apply_majority_kernels,
    fold_majority_kernels,
    majority_state_dict,
)
from tests.conftest import perturb
from tests.training.tiny import NEW, VOCAB, arguments, losses, tiny_model, weights

TOKENS = torch.arange(24).reshape(2, 12) % VOCAB


def gpt2() -> PreTrainedModel:
    """Conv1D layers, whose units are the second dimension, and a tied head."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = GPT2LMHeadModel(config)
    perturb(model, std=0.02)
    return model


def llama() -> PreTrainedModel:
    return tiny_model(dropout=0.0)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("granularity", ["unit", "tensor", "element"])
def test_equal_copies_keep_the_function(make: type, granularity: str) -> None:
    model = make().double()
    expected, names = logits(model), set(model.state_dict())
    apply_majority_kernels(model, expansion=4, granularity=granularity)  # type: ignore[arg-type]
    for mode in (True, False):
        assert (logits(model.train(mode)) - expected).abs().max() < 1e-12
    fold_majority_kernels(model)
    assert set(model.state_dict()) == names
    assert (logits(model) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("make", [llama, gpt2])
def test_different_copies_fold_to_what_evaluation_computes(make: type, tmp_path: Path) -> None:
    model = apply_majority_kernels(make().double(), expansion=3, noise=0.5)
    model.eval()
    expected = logits(model)
    model.train()
    drawn = logits(model)
    assert (drawn - expected).abs().max() > 1e-3
    assert not torch.equal(logits(model), drawn)  # other shares at every pass
    model.save_pretrained(tmp_path, state_dict=majority_state_dict(model))
    stored = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert (logits(stored) - expected).abs().max() < 1e-12
    assert (logits(fold_majority_kernels(model)) - expected).abs().max() < 1e-12


def test_shares_are_uniform_on_the_simplex() -> None:
    """E[p] = 1/e and E[sum p^2] = 2/(e + 1)."""
    expansion, units = 4, 200_000
    kernel = MajorityKernel(expansion, "unit", 0, 0.0)
    copies = torch.eye(expansion, dtype=torch.float64)[:, None, :].expand(expansion, units, expansion)
    shares = kernel(copies)
    assert torch.allclose(shares.sum(dim=1), torch.ones(units, dtype=torch.float64))
    assert shares.mean(dim=0).tolist() == pytest.approx([1 / expansion] * expansion, abs=3e-3)
    assert float((shares**2).sum(dim=1).mean()) == pytest.approx(2 / (expansion + 1), abs=3e-3)


def test_a_unit_shares_its_combination() -> None:
    kernel = MajorityKernel(3, "unit", 1, 0.0)
    copies = torch.stack([torch.full((5, 7), float(2**number)) for number in range(3)])
    weight = kernel(copies)
    assert torch.allclose(weight, weight[:1].expand(5, 7))
    assert len(set(weight[0].tolist())) == 7


def test_tied_heads_and_embeddings_are_left_alone() -> None:
    model = apply_majority_kernels(gpt2())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model = apply_majority_kernels(llama(), target_modules=["*.mlp.*"])
    expanded = [name for name, module in model.named_modules() if parametrize.is_parametrized(module)]
    assert len(expanded) == 6
    assert all(".mlp." in name for name in expanded)


def test_a_plain_trainer_trains_and_resumes_them(tmp_path: Path) -> None:
    def trainer(output: Path) -> Trainer:
        args = arguments(output, max_steps=8, save_steps=4)
        return Trainer(apply_majority_kernels(tiny_model()), args, train_dataset=NEW)

    whole = trainer(tmp_path / "whole")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "half" / "checkpoint-4")
    half = trainer(tmp_path / "half")
    half.train(resume_from_checkpoint=True)
    assert losses(half) == losses(whole)
    assert torch.equal(weights(half), weights(whole))
    assert whole.model is not None
    copies = whole.model.get_parameter("model.layers.0.mlp.up_proj.parametrizations.weight.original")
    assert not torch.equal(copies[0], copies[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expansion": 0}, "at least one copy"),
        ({"granularity": "units"}, "did you mean 'unit'"),
        ({"target_modules": ["*.mpl.*"]}, "matches no linear layer"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_majority_kernels(llama(), **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="already"):
        apply_majority_kernels(apply_majority_kernels(llama()))
    with pytest.raises(ValueError, match="no majority kernels"):
        fold_majority_kernels(llama())
