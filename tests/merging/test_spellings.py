"""One model, spelled differently in two files, is merged to the mean, in either order and by every way to merge."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_warmscale.merging import merge_checkpoints
from hf_warmscale.merging.sources import CheckpointSource
from hf_warmscale.training.averaging import average_run
from hf_warmscale.training.schedules.schedule import get_schedule
from hf_warmscale.training.stage import Progress, StageRecord
from tests.conftest import perturb

Tensors = dict[str, Tensor]

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1}


def with_the_head_stored(tensors: Tensors, model: PreTrainedModel) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def with_buffers_of_old_files(tensors: Tensors, model: PreTrainedModel) -> Tensors:
    return tensors | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(4) for layer in range(2)}


def packed(tensors: Tensors, model: PreTrainedModel) -> Tensors:
    tied = model.all_tied_weights_keys
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tied}


def with_the_live_head(tensors: Tensors, model: PreTrainedModel) -> Tensors:
    return {name.replace("embed_out.", "lm_head."): tensor for name, tensor in tensors.items()}


def without_prefix(tensors: Tensors, model: PreTrainedModel) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


Respell = Callable[[Tensors, PreTrainedModel], Tensors]
SPELLINGS: dict[str, tuple[PreTrainedConfig, Respell]] = {
    "a tied head": (LlamaConfig.from_dict({**LLAMA, "tie_word_embeddings": True}), with_the_head_stored),
    "buffers": (LlamaConfig.from_dict(LLAMA), with_buffers_of_old_files),
    "packed experts": (MixtralConfig.from_dict({**LLAMA, "num_local_experts": 3}), packed),
    "a renamed head": (GPTNeoXConfig.from_dict({**SIZES, "intermediate_size": 24}), with_the_live_head),
    "a prefix": (GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2), without_prefix),
}


def save(folder: Path, config: PreTrainedConfig, seed: int, respell: Respell | None) -> PreTrainedModel:
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    perturb(model, seed=seed)
    model.save_pretrained(folder)
    if respell is not None:
        file = folder / "model.safetensors"
        before = load_file(file)
        after = respell(before, model)
        assert after.keys() != before.keys()  # else the test says nothing
        save_file(after, file, metadata={"format": "pt"})
    return model


def mean(models: list[PreTrainedModel]) -> Tensors:
    states = [dict(model.named_parameters()) for model in models]
    return {name: (states[0][name].double() + states[1][name].double()).detach() / 2 for name in states[0]}


def assert_is(model: PreTrainedModel, expected: Tensors) -> None:
    assert dict(model.named_parameters()).keys() == expected.keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("respelled", [0, 1])
def test_two_spellings_merge_to_the_mean(spelling: str, respelled: int, tmp_path: Path) -> None:
    config, respell = SPELLINGS[spelling]
    run = tmp_path / "run"
    folders = [run / f"checkpoint-{step}" for step in (1, 2)]
    models = [
        save(folder, config, seed, respell if seed == respelled else None) for seed, folder in enumerate(folders)
    ]
    expected = mean(models)

    merge_checkpoints(folders, tmp_path / "merged")
    assert_is(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), expected)
    merged, plain = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", folders[1 - respelled])
    )
    assert merged.keys() == plain.keys()  # the names of the family's own save_pretrained

    source = CheckpointSource(folders, torch.device("cpu"))
    source.combine((0.5, 0.5))
    assert_is(source.model, expected)
    (tmp_path / "searched").mkdir()
    source.write(tmp_path / "searched", (0.5, 0.5), max_shard_size="5GB")
    assert_is(AutoModelForCausalLM.from_pretrained(tmp_path / "searched"), expected)

    for step, folder in enumerate(folders, start=1):
        schedule = asdict(get_schedule("constant", learning_rate=1e-3, warmup=0, total_steps=9))
        StageRecord("base", schedule, 9, 1, "reset", {}, {}, progress=Progress(step=step)).save(folder)
    average_run(run, tmp_path / "averaged", average="swa")
    assert_is(AutoModelForCausalLM.from_pretrained(tmp_path / "averaged"), expected)


def test_masks_of_dare_do_not_depend_on_the_spelling(tmp_path: Path) -> None:
    config, respell = SPELLINGS["packed experts"]
    folders = [tmp_path / name for name in ("base", "checkpoint-1", "checkpoint-2", "packed")]
    for seed, folder in enumerate(folders[:3]):
        save(folder, config, seed, None)
    save(folders[3], config, 2, respell)
    for last in folders[2:]:
        merge_checkpoints([folders[1], last], tmp_path / f"of-{last.name}", method="dare", base=folders[0])
    one, two = (load_file(tmp_path / f"of-{last.name}" / "model.safetensors") for last in folders[2:])
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
