"""Extended tokenizers cut the old text as before and the new text shorter; new embeddings are sub-token means."""

import gzip
import inspect
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from hf_warmscale.resize.vocabulary import extend_tokenizer, grow_vocabulary, learn_merges
from hf_warmscale.training.domains import bits_per_byte
from tests.conftest import perturb
from tests.training.tiny import TEXT, train_tokenizer


@pytest.fixture(scope="module")
def old() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT["old"]])


@pytest.fixture(scope="module")
def extended(old: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return extend_tokenizer(old, [TEXT["new"]] * 4, 12)


def test_going_on_is_training_in_one_go() -> None:
    """Byte pair encoding that is stopped and continued on the same words is the uninterrupted one."""
    texts = ["low lower lowest newer newest wider widest slow slower slowest"] * 5

    def trained(size: int) -> PreTrainedTokenizerFast:
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        model.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        )
        return PreTrainedTokenizerFast(tokenizer_object=model)

    whole, half = trained(280), trained(266)
    continued = extend_tokenizer(half, texts, 14)
    lengths = {
        name: len(tokenizer(texts[0])["input_ids"])
        for name, tokenizer in {"whole": whole, "half": half, "continued": continued}.items()
    }
    assert len(continued) == 280
    assert lengths["continued"] == lengths["whole"] < lengths["half"]


def test_old_numbers_stay_and_new_text_gets_shorter(
    old: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert len(extended) == len(old) + 12
    assert old.get_vocab().items() <= extended.get_vocab().items()
    new = TEXT["new"]
    assert len(extended(new)["input_ids"]) < len(old(new)["input_ids"])
    assert extended.decode(extended(new)["input_ids"]) == new
    used = set(extended(new)["input_ids"])
    assert used & set(range(len(old), len(extended)))  # within reach
    extended.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(new)["input_ids"] == extended(new)["input_ids"]
    assert (extended.eos_token_id, extended.eos_token) == (old.eos_token_id, old.eos_token)


def test_text_without_new_tokens_is_cut_as_before(
    old: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast
) -> None:
    for text in (TEXT["old"], "0123456789 \n\t{}", "ÄÖÜ 漢字"):
        numbers = extended(text)["input_ids"]
        if max(numbers) < len(old):
            assert numbers == old(text)["input_ids"]


def test_new_tokens_decode_to_their_sub_tokens(
    old: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast
) -> None:
    for number in range(len(old), len(extended)):
        token = extended.convert_ids_to_tokens(number)
        parts = [part.value for part in old.backend_tokenizer.model.tokenize(token)]
        assert len(parts) > 1
        assert "".join(parts) == token


@pytest.mark.parametrize("tied", [True, False])
def test_new_embeddings_are_means_and_old_logits_stay(
    tied: bool, old: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(old), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    perturb(model, std=0.02)
    tokens = torch.tensor([old(TEXT["old"])["input_ids"]])
    with torch.no_grad():
        before = model(tokens).logits
    grow_vocabulary(model, old, extended)
    with torch.no_grad():
        after = model(tokens).logits
    assert (after[..., : len(old)] - before).abs().max() < 1e-13
    assert model.config.vocab_size == len(extended)
    for table in (model.get_parameter("model.embed_tokens.weight"), model.lm_head.weight):
        for number in range(len(old), len(extended)):
            token = extended.convert_ids_to_tokens(number)
            parts = [part.id for part in old.backend_tokenizer.model.tokenize(token)]
            assert (table[number] - table[parts].mean(dim=0)).abs().max() < 1e-14
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_merges_are_the_most_frequent_pairs() -> None:
    words = {("a", "b", "c"): 5, ("b", "c"): 3, ("a", "b"): 1, ("x", "y"): 1}
    assert learn_merges(words, 5, known={}) == [("b", "c"), ("a", "bc")]
    assert learn_merges(words, 5, known={"bc": 0})[0] == ("a", "b")
    assert learn_merges({("a", "a", "a", "a"): 2}, 2, known={}) == [("a", "a"), ("aa", "aa")]


def test_bits_per_byte_do_not_depend_on_the_cut() -> None:
    """The same text, cut into half as many tokens of twice the loss."""
    assert bits_per_byte(2.0, 100 / 400) == pytest.approx(bits_per_byte(4.0, 50 / 400))
    assert bits_per_byte(math.log(2), 1.0) == pytest.approx(1.0)


def test_other_tokenizers_are_refused(old: PreTrainedTokenizerFast) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="only fast BPE"):
        extend_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words), ["a a"], 3)
    with pytest.raises(ValueError, match="repeat no pair"):
        extend_tokenizer(old, [""], 3)
    with pytest.raises(ValueError, match="above 0"):
        extend_tokenizer(old, ["a"], 0)
    other = train_tokenizer([TEXT["new"]])
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(old), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="extend the tokenizer of the model"):
        grow_vocabulary(model, old, other)


KINDS = (PreTrainedTokenizerFast, Qwen2Tokenizer, GPT2Tokenizer)
CORPORA = {
    "old": TEXT["old"],
    "new": TEXT["new"],
    "code": inspect.getsource(inspect),
    "many alphabets": "Ärger, 漢字 und\t½ \U0001f642\n\n  x=1;  ÄÖÜ\r\n" * 3,
}


def with_added_tokens(kind: type[Any], folder: Path) -> Any:
    """Return a tokenizer whose added tokens lie behind the vocabulary, as those of Qwen and Llama 3."""
    base = train_tokenizer([TEXT["old"]]).backend_tokenizer
    base.model.save(str(folder))
    tokenizer = kind(tokenizer_object=base)
    if kind is not PreTrainedTokenizerFast:
        tokenizer = kind(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.add_tokens(["<tool>", "a tool"])
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_behind_the_vocabulary_keep_their_ids(kind: type[Any], tmp_path: Path) -> None:
    old = with_added_tokens(kind, tmp_path)
    last = max(old.get_vocab().values())
    assert old.get_vocab()["a tool"] == last and old.eos_token_id == last - 2
    extended = extend_tokenizer(old, [TEXT["new"]] * 4, 12)
    extended.save_pretrained(tmp_path / "extended")
    assert not any("warmscale" in path.read_text() for path in (tmp_path / "extended").glob("*.json"))
    for tokenizer in (extended, AutoTokenizer.from_pretrained(tmp_path / "extended")):
        ids = tokenizer.get_vocab()
        assert old.get_vocab().items() <= ids.items() and len(set(ids.values())) == len(ids) == last + 13
        assert tokenizer.eos_token_id == old.eos_token_id
        for text in CORPORA.values():
            marked = f"<tool>{text[:400]}<|im_end|>{text[400:]}a tool"
            numbers = tokenizer(marked, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(numbers) == marked
            if max(numbers) <= last:
                assert numbers == old(marked, add_special_tokens=False)["input_ids"]
            assert numbers.count(old.get_vocab()["<tool>"]) == marked.count("<tool>")
        assert max(tokenizer(TEXT["new"])["input_ids"]) > last
    twice = extend_tokenizer(extended, [TEXT["new"]] * 4, 3)
    assert extended.get_vocab().items() <= twice.get_vocab().items()
    assert len(set(twice.get_vocab().values())) == len(twice.get_vocab())


@pytest.mark.parametrize("domain", ["documentation", "english", "german", "python"])
def test_real_text_comes_back_as_it_was(domain: str, corpora: Path, tmp_path: Path) -> None:
    with gzip.open(corpora / f"{domain}.validation.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:1500] for line in islice(file, 300)]
    old = with_added_tokens(PreTrainedTokenizerFast, tmp_path)
    extended = extend_tokenizer(old, texts[:40], 100)
    ids = extended.get_vocab()
    assert old.get_vocab().items() <= ids.items()
    assert len(set(ids.values())) == len(ids) == len(old.get_vocab()) + 100
    marked = [f"<tool>{text}<|im_end|>" for text in texts]
    numbers = extended(marked, add_special_tokens=False)["input_ids"]
    assert extended.batch_decode(numbers) == marked
    before = old(marked, add_special_tokens=False)["input_ids"]
    assert sum(map(len, numbers)) < sum(map(len, before))


def test_biases_of_the_head_grow_too(old: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": len(old),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
    }
    model: Any = AutoModelForCausalLM.from_config(PhiConfig(**sizes, num_hidden_layers=1))
    perturb(model)
    bias = model.lm_head.bias.detach().clone()
    grow_vocabulary(model, old, extended)
    assert torch.equal(model.lm_head.bias[: len(old)], bias)
    for number in range(len(old), len(extended)):
        parts = [p.id for p in old.backend_tokenizer.model.tokenize(extended.convert_ids_to_tokens(number))]
        torch.testing.assert_close(model.lm_head.bias[number].detach(), bias[parts].mean())


def test_tables_by_layer_grow_too(old: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast) -> None:
    config = AutoConfig.for_model(
        "gemma3n_text", vocab_size=len(old), vocab_size_per_layer_input=len(old), hidden_size=16,
        intermediate_size=[32, 32], hidden_size_per_layer_input=4, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["full_attention", "full_attention"], laurel_rank=2, altup_num_inputs=2,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    number = len(extended) - 1
    with torch.no_grad():
        before = model(torch.tensor([[4, 5, 6]])).logits
        grow_vocabulary(model, old, extended)
        assert model.config.vocab_size_per_layer_input == len(extended)
        torch.testing.assert_close(model(torch.tensor([[4, 5, 6]])).logits[..., : len(old)], before)
        assert model(torch.tensor([[4, number]])).logits.isfinite().all()
    table = model.get_submodule("model.embed_tokens_per_layer").weight
    parts = [p.id for p in old.backend_tokenizer.model.tokenize(extended.convert_ids_to_tokens(number))]
    torch.testing.assert_close(table[number], table[parts].mean(0))


def test_a_token_without_old_parts_starts_at_the_mean() -> None:
    bare = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    small, wide = (PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bare.to_str())) for _ in range(2))
    wide.add_tokens(["zz", "ab"])
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    grow_vocabulary(model, small, wide)
    table = model.get_input_embeddings().weight
    assert table.isfinite().all() and len(table) == 4
    torch.testing.assert_close(table[2:], table[:2].mean(0, keepdim=True).expand(2, -1))


def test_two_tokens_of_one_id_are_refused(old: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = train_tokenizer([TEXT["old"]])
    monkeypatch.setattr(twice, "get_vocab", lambda: {**old.get_vocab(), "new": len(old), "other": len(old)})
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(old), hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match=f"gives 'new' and 'other' the id {len(old)}"):
        grow_vocabulary(model, old, twice)
