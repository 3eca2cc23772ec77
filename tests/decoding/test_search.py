"""Weights and beta are a space of the search that merges checkpoints."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_warmscale.checkpoints import save_model
from hf_warmscale.decoding import EmulatedFineTuningForCausalLM, EmulatedSpace, MemberSource
from hf_warmscale.evaluation import document_nll
from hf_warmscale.merging import search_merge
from tests.decoding.tiny import emulated, log_probs, members, tiny, tokens
from tests.hub.tiny import tiny_tokenizer

DOCUMENTS = [f"Growth keeps function {number}, merging averages weights {number}." for number in range(24)]


def test_one_member_alone_is_that_model() -> None:
    base, reference, tuned = members()
    other = tiny(seed=6)
    model = EmulatedFineTuningForCausalLM(base, [tuned, other], reference)
    source = MemberSource(model)
    for index, alone in enumerate((base, reference, tuned, other)):
        source.combine([float(index == each) for each in range(len(source))])
        torch.testing.assert_close(log_probs(model, tokens()), log_probs(alone, tokens()), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"give one number per member, 1 in all"):
        source.combine([0.5, 0.5, 0.5, 0.0])


def test_points_and_weights_are_each_others_inverse() -> None:
    space = EmulatedSpace(2)
    point = {"weight_0": 0.3, "weight_1": 1.2, "beta": 0.75}
    assert space.point(space.weights(point)) == pytest.approx(point)
    assert sum(space.weights(point)) == pytest.approx(1)
    assert space.point((0.5, 3.0, -1.0, -1.5)) is None


def test_a_search_finds_a_better_combination_and_writes_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name, width, seed in (("large", 32, 0), ("small", 16, 1), ("tuned", 16, 2)):
        model = tiny(width=width, seed=seed, dtype=torch.float32)
        model.resize_token_embeddings(300)
        save_model(model, tmp_path / name, tokenizer=tiny_tokenizer())
    large, small, tuned = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("large", "small", "tuned")
    )
    combined = EmulatedFineTuningForCausalLM(large, tuned, small)
    result = search_merge(
        MemberSource(combined),
        space=EmulatedSpace(1),
        select=DOCUMENTS[:12],
        confirm=DOCUMENTS[12:],
        n_trials=10,
        output=tmp_path / "found",
    )
    loaded = EmulatedFineTuningForCausalLM.from_pretrained(tmp_path / "found")
    assert result.accepted, result.verdict
    assert (loaded.config.beta, loaded.config.weights) == (combined.config.beta, combined.config.weights)
    loss = document_nll(loaded, DOCUMENTS[12:], tiny_tokenizer()).mean
    for alone in (large, small, tuned):
        assert loss < document_nll(alone, DOCUMENTS[12:], tiny_tokenizer()).mean
    assert result.num_trials == 10


def test_a_reference_with_its_adapter_off_may_hold_a_single_number() -> None:
    """Its record differs from that of the tuned model, whatever its last tensor is."""
    base, small, _ = members()
    small.register_buffer("temperature", torch.tensor(2.0, dtype=torch.float64))
    adapted = get_peft_model(small, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    records = MemberSource(EmulatedFineTuningForCausalLM(base, adapted)).check()
    assert len({record.sha256 for record in records}) == 3


def test_a_member_with_nan_is_named() -> None:
    model = emulated()
    with torch.no_grad():
        model.get_parameter("reference.model.norm.weight")[0] = torch.nan
    with pytest.raises(ValueError, match=r"model\.norm\.weight of the reference model"):
        MemberSource(model).check()
