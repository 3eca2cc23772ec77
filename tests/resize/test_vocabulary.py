"""Extended tokenizers cut the old text as before and the new text shorter; new embeddings are sub-token means."""

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
