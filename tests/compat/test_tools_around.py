"""What others make for models of transformers takes a grown one: trl's DPO, peft's LoRA and DoRA, the pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, pipeline
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from hf_warmscale import grow_checkpoint
from hf_warmscale.training.recipe.fields import ModelArguments
from hf_warmscale.training.recipe.run import model_of
from tests.cli.workspace import SENTENCES, make_tokenizer
from tests.conftest import perturb

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),  # defaults of trl's
]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was grown in width and depth, with its tokenizer."""
    folder = tmp_path_factory.mktemp("tools")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    perturb(model, std=0.02)
    model.save_pretrained(folder / "small")
    make_tokenizer().save_pretrained(folder / "small")
    grow_checkpoint(folder / "small", folder / "grown", hidden_size=32, num_hidden_layers=2, depth="identity")
    return folder / "grown"


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "use_cpu": True, "bf16": False, "save_strategy": "no", "report_to": "none", "max_length": 32,
    }  # fmt: skip


def assert_trained(trainer: Any, grown: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(grown).state_dict()
    after = trainer.model.state_dict()
    assert trainer.state.global_step == 2
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_sft_of_trl(grown: Path, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": SENTENCES})
    trainer = SFTTrainer(str(grown), SFTConfig(**settings(tmp_path)), train_dataset=rows)
    trainer.train()
    assert_trained(trainer, grown)


def test_dpo_of_trl(grown: Path, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"prompt": SENTENCES, "chosen": SENTENCES[1:] + SENTENCES[:1], "rejected": SENTENCES})
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(grown), args=DPOConfig(**settings(tmp_path)), train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(grown),
    )  # fmt: skip
    trainer.train()
    assert_trained(trainer, grown)


@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
def test_adapters_of_peft_merge(use_dora: bool, grown: Path) -> None:
    """DoRA divides by the norm of each row, so it takes the block that the growth did not begin at 0."""
    layers = [0] if use_dora else None
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(grown),
        LoraConfig(
            r=2,
            target_modules=["q_proj", "down_proj"],
            layers_to_transform=layers,
            use_dora=use_dora,
            task_type="CAUSAL_LM",
        ),
    )
    tokens = torch.arange(24).reshape(2, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        adapted = model(input_ids=tokens).logits
        with model.disable_adapter():
            plain = model(input_ids=tokens).logits
        merged = model.merge_and_unload()(input_ids=tokens).logits
    assert float((adapted - plain).abs().max()) > 1e-4
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)


def test_dora_on_rows_of_zeros_is_refused(grown: Path) -> None:
    """peft computes 0 / 0 there, and every logit is NaN."""
    arguments = ModelArguments(str(grown), lora={"r": 2, "use_dora": True})
    with pytest.raises(ValueError, match=r"use_dora .*, and model\.layers\.1\.self_attn\.o_proj has rows of zeros"):
        model_of(arguments)


def test_the_pipeline_generates_as_the_model_does(grown: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(grown)
    inputs = tokenizer("To err is", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(grown)
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs.input_ids.shape[1] :]
    generate = pipeline("text-generation", model=str(grown), device="cpu")
    (answer,) = generate("To err is", max_new_tokens=4, do_sample=False, return_full_text=False)
    assert answer["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)
