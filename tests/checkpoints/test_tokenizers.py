"""One language: every id that two tokenizers share stands for the same token."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, BertTokenizerLegacy, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_warmscale.checkpoints import (
    compare_tokenizers,
    find_tokenizer,
    load_tokenizer,
    require_one_language,
    save_model,
)
from hf_warmscale.checkpoints.tokenizers import num_ids, shared_ids
from tests.hub.tiny import tiny_model, tiny_tokenizer

WORDS = ["[UNK]", "the", "cat", "sat", "mat"]


def words(*tokens: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words."""
    model = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")


def with_added(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> PreTrainedTokenizerFast:
    """Add special tokens to a tokenizer."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


@pytest.mark.parametrize(
    ("other", "clause"),
    [
        (["[UNK]", "the", "sat", "cat", "mat"], "the token 'cat' has id 2 in the first and id 3 in the second"),
        (
            ["[UNK]", "the", "dog", "sat", "mat"],
            "the token 'cat' has id 2 in the first and is missing in the second, where that id is 'dog'",
        ),
        (["[UNK]", "the", "cat", "sat"], "the token 'mat' has id 4 in the first and is missing in the second"),
        ([*WORDS, "hat"], "the token 'hat' has id 5 in the second and is missing in the first"),
    ],
)
def test_the_first_token_that_disagrees_is_named(other: list[str], clause: str) -> None:
    comparison = compare_tokenizers(words(*WORDS), words(*other))
    assert comparison.disagreement == clause
    assert not comparison.only_first and not comparison.only_second


def test_equal_tokenizers_are_one_language() -> None:
    assert compare_tokenizers(words(*WORDS), words(*WORDS)).disagreement is None
    assert compare_tokenizers(tiny_tokenizer(), tiny_tokenizer()).disagreement is None


def test_tokens_that_one_has_added_are_reported() -> None:
    plain, chat = words(*WORDS), with_added(words(*WORDS), "<|start|>", "<|end|>")
    assert compare_tokenizers(plain, chat).only_second == ("<|start|>", "<|end|>")
    assert compare_tokenizers(chat, plain).only_first == ("<|start|>", "<|end|>")
    (remark,) = require_one_language({"base": plain, "chat": chat})
    assert remark == "chat has 2 added token(s) that base lacks: '<|start|>', '<|end|>'."


def test_added_tokens_at_one_id_disagree() -> None:
    comparison = compare_tokenizers(with_added(words(*WORDS), "<a>"), with_added(words(*WORDS), "<b>"))
    assert comparison.disagreement is not None and "where that id is '<b>'" in comparison.disagreement


def test_an_added_token_may_be_an_ordinary_one_elsewhere() -> None:
    assert compare_tokenizers(with_added(words(*WORDS), "hat"), words(*WORDS, "hat")).disagreement is None


def test_slow_and_fast_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    slow = BertTokenizerLegacy(
        str(tmp_path / "vocab.txt"), sep_token="the", pad_token="the", cls_token="the", mask_token="the"
    )
    assert not slow.is_fast
    assert compare_tokenizers(slow, words(*WORDS)).disagreement is None
    assert compare_tokenizers(slow, words(*WORDS[::-1])).disagreement is not None


def test_models_without_a_tokenizer_are_named() -> None:
    tokenizer = words(*WORDS)
    (remark,) = require_one_language({"a": tokenizer, "b": None, "c": words(*WORDS)})
    assert remark == "b has no tokenizer, so its vocabulary was not compared with that of the others."
    assert require_one_language({"a": None}) == []
    with pytest.raises(
        ValueError, match=r"^a and c do not share a vocabulary: the token 'cat' has id 2 in a and id 3"
    ):
        require_one_language({"a": tokenizer, "b": None, "c": words("[UNK]", "the", "sat", "cat", "mat")})


def test_rows_beyond_the_tokenizer_are_padding() -> None:
    tokenizer = words(*WORDS)
    assert shared_ids({"a": 8, "b": 16}, {"a": tokenizer, "b": tokenizer}) == 5
    assert shared_ids({"a": 8, "b": 16}, {"a": None, "b": None}) == 8
    assert shared_ids({"a": 8, "b": 16}, {"a": tokenizer, "b": with_added(words(*WORDS), "<end>")}) == 5
    with pytest.raises(ValueError, match="ids up to 4, but the model has 4 rows"):
        shared_ids({"a": 4}, {"a": tokenizer})


def test_ids_are_counted_over_gaps() -> None:
    model = Tokenizer(models.WordLevel({"[UNK]": 0, "far": 100}, unk_token="[UNK]"))
    assert num_ids(PreTrainedTokenizerFast(tokenizer_object=model)) == 101


def test_loading_and_finding(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "with@sign")
    for loaded in (load_tokenizer(tmp_path / "with@sign"), find_tokenizer(str(tmp_path / "with@sign"))):
        assert isinstance(loaded, PreTrainedTokenizerBase)
        assert compare_tokenizers(loaded, tiny_tokenizer()).disagreement is None
    assert find_tokenizer(None) is None and find_tokenizer("") is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3_text", "gpt_neox", "t5", "bert"])
def test_a_folder_without_tokenizer_files(tmp_path: Path, family: str) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    assert find_tokenizer(tmp_path) is None
    with pytest.raises(ValueError, match=f"^{tmp_path} holds no "):
        load_tokenizer(tmp_path)


def test_broken_files_are_one_sentence(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no tokenizer that transformers can load"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@main", "no such folder"])
def test_what_is_neither_a_folder_nor_cached(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"(no such tokenizer|nor a possible Hub id); check the name"):
        load_tokenizer(name)
    assert find_tokenizer(name) is None


@pytest.mark.parametrize("name", ["id@", "@main"])
def test_half_a_revision_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="write id@revision"):
        load_tokenizer(name)


def test_a_revision_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--model"
    for revision, tokenizer in {"a" * 40: words(*WORDS), "b" * 40: words("[UNK]", "dog", "sat")}.items():
        save_model(tiny_model(), repository / "snapshots" / revision, tokenizer=tokenizer)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    (repository / "refs" / "step1").write_text("b" * 40, encoding="utf-8")
    assert "cat" in load_tokenizer("someone/model").get_vocab()
    assert "dog" in load_tokenizer("someone/model@step1").get_vocab()
