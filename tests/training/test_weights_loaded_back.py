"""A resumed or chained run has all weights, whatever names and layout a family's files have."""

import json
import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.cli import main
from hf_warmscale.training import ContinualTrainer, Stage, StageRecord
from hf_warmscale.training.recipe.run import train
from tests.training.families import configuration, family
from tests.training.tiny import arguments, replay, train_tokenizer, weights, write_corpus

RENAMED = ["qwen3_moe", "mixtral", "gpt_neox", "deepseek_v3", "phimoe", "exaone", "llama", "gpt2"]


def trainer(model: PreTrainedModel, output: Path, name: str = "first", **settings: object) -> ContinualTrainer:
    stage = Stage(name, {"name": "rewarm_cosine", "warmup": 1}, replay(0.3), max_steps=4)
    return ContinualTrainer(model, arguments(output, save_steps=2, **settings), stage=stage)


@pytest.mark.parametrize("name", RENAMED)
def test_all_weights_come_back(name: str, tmp_path: Path) -> None:
    """On resume, at the start of the next stage, and as the best model at the end."""
    whole = trainer(family(name), tmp_path / "whole")
    whole.train()
    middle, last = tmp_path / "whole" / "checkpoint-2", tmp_path / "whole" / "checkpoint-4"
    shutil.copytree(middle, tmp_path / "half" / "checkpoint-2")
    half = trainer(family(name, seed=1), tmp_path / "half")
    half.train(resume_from_checkpoint=True)
    assert torch.equal(weights(half), weights(whole))

    second = trainer(family(name, seed=1), tmp_path / "second", "second", learning_rate=0.0)
    second.train(resume_from_checkpoint=str(last))
    assert torch.equal(weights(second), weights(whole))

    whole.state.best_model_checkpoint = str(middle)
    whole._load_best_model()
    stored = AutoModelForCausalLM.from_pretrained(middle, dtype=torch.float32).state_dict()
    assert whole.model is not None
    assert all(torch.equal(value, stored[key]) for key, value in whole.model.state_dict().items())


def adapted(name: str, seed: int) -> PreTrainedModel:
    """Return a family under LoRA adapters, drawn from a seed, and a base that is always the same."""
    base = family(name)
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2)
    return cast(PreTrainedModel, get_peft_model(base, config))


def test_adapters_of_a_renamed_family_come_back(tmp_path: Path) -> None:
    """On resume and as the best model; recipes/reproduce/resume has the other families."""
    whole = trainer(adapted("qwen3_moe", 0), tmp_path / "whole")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    half = trainer(adapted("qwen3_moe", 1), tmp_path / "half")
    half.train(resume_from_checkpoint=True)
    assert torch.equal(weights(half), weights(whole))
    fresh = trainer(adapted("qwen3_moe", 2), tmp_path / "fresh")
    assert not torch.equal(weights(fresh), weights(whole))
    fresh.state.best_model_checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    fresh._load_best_model()
    assert torch.equal(weights(fresh), weights(whole))


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    trainer(family("mixtral"), tmp_path / "run").train()
    file = tmp_path / "run" / "checkpoint-4" / "model.safetensors"
    tensors = load_file(file)
    removed = next(name for name in tensors if name.endswith("input_layernorm.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != removed}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks the tensor {removed} of the model; resume .*checkpoint-2"):
        trainer(family("mixtral"), tmp_path / "run").train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["mixtral", "gpt_neox"])
def test_the_command_line_run_again_after_a_kill(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained("tokenizer")
    write_corpus(tmp_path, "new")
    pack = ["data", "pack", "new.jsonl", "packed", "--tokenizer", "tokenizer", "--sequence-length", "16"]
    assert main(pack) == 0
    content = {
        "model_config": {"model_type": name, **configuration(name), "vocab_size": len(tokenizer)},
        "tokenizer_name_or_path": "tokenizer",
        "stage": "new", "schedule": "constant", "max_steps": 4, "learning_rate": 0.01, "save_steps": 2,
        "mixture": {"new": {"path": "packed", "weight": 1.0}},
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "output_dir": "whole",
    }  # fmt: skip
    Path("stage.yaml").write_text(json.dumps(content))
    whole = train("stage.yaml")
    shutil.copytree("whole/checkpoint-2", "half/checkpoint-2")
    half = train("stage.yaml", ["--output_dir", "half"])
    assert StageRecord.load("half/checkpoint-4").progress.step == 4
    assert torch.equal(weights(half), weights(whole))
