"""Which checkpoints belong together: their configs, their tokenizers and their order."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from hf_warmscale.checkpoints import load_tokenizer, open_checkpoint, save_model
from hf_warmscale.merging import merge_checkpoints, search_merge
from hf_warmscale.merging.inputs import check_order, open_inputs, positions, training_step
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer

SIZES = {
    "vocab_size": 258,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def edit(folder: Path, file: str = "config.json", **fields: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | fields))


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two checkpoints of a Qwen2, whose config has many fields."""
    folders = [tmp_path / "run" / f"checkpoint-{step}" for step in (1, 2)]
    for folder in folders:
        save_model(Qwen2ForCausalLM(Qwen2Config.from_dict(SIZES)), folder, tokenizer=tiny_tokenizer())
    return folders


NOT_READ: dict[str, Any] = {
    "attention_dropout": 0.1,
    "unsloth_version": "2026.1",
    "max_window_layers": 1,
    "growth": {"source": "small"},
    "initializer_range": 0.1,
    "use_cache": False,
    "eos_token_id": 5,
    "dtype": "bfloat16",
    "router_aux_loss_coef": 0.5,
    "id2label": {"0": "a", "1": "b"},
    "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
}


@pytest.mark.parametrize("field", NOT_READ)
def test_fields_that_the_forward_pass_does_not_read_may_differ(field: str, pair: list[Path]) -> None:
    edit(pair[0], "config.json", **{field: NOT_READ[field]})
    open_inputs(pair)
    open_inputs(pair[::-1])


READ: dict[str, Any] = {
    "rms_norm_eps": 1e-3,
    "hidden_act": "gelu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    "layer_types": ["full_attention", "sliding_attention"],
}


@pytest.mark.parametrize("field", READ)
def test_fields_that_it_reads_must_agree(field: str, pair: list[Path]) -> None:
    edit(pair[0], "config.json", **{field: READ[field]})
    with pytest.raises(ValueError, match=f"differ in {field} "):
        open_inputs(pair)


def test_the_number_of_rotary_positions_is_told(pair: list[Path]) -> None:
    """Base and tuned models often differ in it alone; other kinds of rotary positions scale by it."""
    edit(pair[0], max_position_embeddings=128)
    with pytest.warns(UserWarning, match=r"differ in max_position_embeddings \(128 against 32768\)"):
        open_inputs(pair)
    for folder in pair:
        edit(folder, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(ValueError, match="differ in max_position_embeddings"):
        open_inputs(pair)


class TestTokenizers:
    def test_disagreeing_ids_are_refused(self, pair: list[Path], tmp_path: Path) -> None:
        """The tables have one size, and the same words: two ids are swapped."""
        path = pair[1] / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        path.write_text(json.dumps(content))
        sentence = "do not share a vocabulary: the token 'a' has id"
        with pytest.raises(ValueError, match=sentence):
            merge_checkpoints(pair, tmp_path / "out")
        with pytest.raises(ValueError, match=sentence):
            search_merge(pair, select=["a", "b"], confirm=["c", "d"], output=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_added_tokens_are_told(self, pair: list[Path]) -> None:
        tokenizer = load_tokenizer(pair[1])
        tokenizer.add_tokens(["<think>"])
        tokenizer.save_pretrained(pair[1])
        with pytest.warns(UserWarning, match=r"checkpoint-2 has 1 added token.* lacks: '<think>'"):
            open_inputs(pair)

    def test_equal_ones_and_missing_ones_are_passed_over(self, pair: list[Path]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            open_inputs(pair)
            for path in pair[0].glob("tokenizer*"):
                path.unlink()
            open_inputs(pair)

    def test_a_merge_without_a_tokenizer_is_told(self, pair: list[Path]) -> None:
        for path in pair[1].glob("tokenizer*"):
            path.unlink()
        with pytest.warns(UserWarning, match="checkpoint-2, the last, has no tokenizer, so the merge has none"):
            open_inputs(pair)

    def test_the_one_that_is_passed_to_a_search_is_compared(self, pair: list[Path]) -> None:
        content = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
        words = content["model"]["vocab"]
        words["a"], words["b"] = words["b"], words["a"]
        swapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<s>")
        with pytest.raises(ValueError, match="the token 'b' has id 66 in the tokenizer that was passed"):
            search_merge(pair, select=["a", "b"], confirm=["c", "d"], tokenizer=swapped)


class TestOrder:
    @pytest.mark.parametrize(
        ("name", "step"),
        [
            ("checkpoint-20", 20),
            ("step1000", 1000),
            ("stage1-step1000-tokens4B", 1000),
            ("tuned-v2", None),
            ("Llama-3", None),
            ("model-7b", None),
            ("footstep7x", None),
        ],
    )
    def test_only_names_of_steps_count(self, name: str, step: int | None, tmp_path: Path) -> None:
        save_model(tiny_llama(), tmp_path / name)
        assert training_step(open_checkpoint(tmp_path / name)) == step

    def test_names_that_end_in_a_number_may_be_listed_in_any_order(self, tmp_path: Path) -> None:
        for name in ("tuned-v2", "tuned-v1"):
            save_model(tiny_llama(), tmp_path / name)
        check_order([open_checkpoint(tmp_path / name) for name in ("tuned-v2", "tuned-v1")])

    def test_two_seeds_at_one_step(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            save_model(tiny_llama(seed=seed), tmp_path / f"seed-{seed}" / "checkpoint-100")
        save_model(tiny_llama(seed=2), tmp_path / "seed-1" / "checkpoint-50")
        soup = [open_checkpoint(tmp_path / f"seed-{seed}" / "checkpoint-100") for seed in (0, 1)]
        check_order(soup)
        check_order(soup[::-1])
        earlier = open_checkpoint(tmp_path / "seed-1" / "checkpoint-50")
        check_order([soup[0], earlier])  # of another run: no order
        with pytest.raises(ValueError, match=r"\(100 steps\) is listed before .* \(50 steps\)"):
            check_order([soup[1], earlier])

    def test_stages_are_ordered_by_tokens(self, tmp_path: Path) -> None:
        """The steps of the second stage are counted anew, so they say the opposite."""
        first, second = tmp_path / "one" / "checkpoint-100", tmp_path / "two" / "checkpoint-20"
        for folder in (first, second):
            save_model(tiny_llama(), folder)
        before = {"name": "english", "progress": {"step": 100, "tokens": {"a": 1000}}, "lineage": []}
        after = {"name": "german", "progress": {"step": 20, "tokens": {"b": 200}}, "lineage": [before]}
        edit(first, "stage.json", **before)
        edit(second, "stage.json", **after)
        edit(first, "trainer_state.json", global_step=100, log_history=[])
        edit(second, "trainer_state.json", global_step=20, log_history=[])
        checkpoints = [open_checkpoint(first), open_checkpoint(second)]
        check_order(checkpoints)
        assert positions(*checkpoints) == (1000, 1200, "tokens")
        with pytest.raises(ValueError, match=r"\(1,200 tokens\) is listed before .* \(1,000 tokens\)"):
            check_order(checkpoints[::-1])

    def test_branches_have_no_order(self, tmp_path: Path) -> None:
        folders = [tmp_path / name / "checkpoint-10" for name in ("german", "python")]
        for tokens, folder in zip((300, 200), folders, strict=True):
            save_model(tiny_llama(), folder)
            progress = {"step": 10, "tokens": {"a": tokens}}
            edit(folder, "stage.json", name=folder.parent.name, progress=progress, lineage=[])
        check_order([open_checkpoint(folder) for folder in folders])


def test_the_written_config_is_that_of_a_stock_model(pair: list[Path], tmp_path: Path) -> None:
    edit(pair[1], use_cache=False, architectures=None, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    merge_checkpoints(pair, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["use_cache"] and "auto_map" not in config
    assert isinstance(open_checkpoint(tmp_path / "out").config, PreTrainedConfig)
