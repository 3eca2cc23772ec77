"""The likelihood of a document is the sum of the log-probabilities of its tokens, whatever the batching."""

import json
import math
import random

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from hf_warmscale.evaluation import (
    IGNORE_INDEX,
    DocumentNLL,
    EvaluationSet,
    NonFiniteLossError,
    document_nll,
    token_nll,
)
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer


def one_by_one(model: LlamaForCausalLM, document: str) -> float:
    """The definition: log p(token | start token, tokens before), summed."""
    ids = [0, *tiny_tokenizer()(document, add_special_tokens=False)["input_ids"]]
    model.eval()
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(log_p[position, ids[position + 1]]) for position in range(len(ids) - 1))


def test_agrees_with_the_definition() -> None:
    model, documents = tiny_llama(), tiny_documents()
    scores = document_nll(model, documents, tiny_tokenizer())
    np.testing.assert_allclose(scores.nll, [one_by_one(model, text) for text in documents], rtol=2e-6)
    assert scores.bytes.tolist() == [len(text.encode()) for text in documents]
    assert scores.tokens.tolist() == scores.bytes.tolist()  # a token is a byte here


def test_derived_numbers_follow_from_the_sums() -> None:
    scores = document_nll(tiny_llama(), tiny_documents(), tiny_tokenizer())
    assert scores.mean == pytest.approx(scores.nll.sum() / scores.tokens.sum())
    assert scores.perplexity == pytest.approx(math.exp(scores.mean))
    assert scores.bits_per_byte == pytest.approx(scores.mean / math.log(2))  # one token a byte
    assert scores.summary()["documents"] == 12


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_batching_changes_nothing(batch_tokens: int, float64_norms: None) -> None:
    model, documents = tiny_llama().double(), tiny_documents()
    expected = document_nll(model, documents, tiny_tokenizer())
    scores = document_nll(model, documents, tiny_tokenizer(), batch_tokens=batch_tokens)
    np.testing.assert_allclose(scores.nll, expected.nll, rtol=1e-12)


def test_results_come_in_the_order_given() -> None:
    model, documents = tiny_llama(), tiny_documents()
    order = random.Random(0).sample(range(len(documents)), len(documents))
    expected = document_nll(model, documents, tiny_tokenizer())
    scores = document_nll(model, [documents[index] for index in order], tiny_tokenizer())
    np.testing.assert_allclose(scores.nll, expected.nll[order], rtol=1e-6)
    assert scores.sha256 != expected.sha256 and set(scores.digests) == set(expected.digests)


def test_repeats_bit_for_bit() -> None:
    model, held_out = tiny_llama(), EvaluationSet.from_documents(tiny_documents(), tiny_tokenizer())
    assert held_out.nll(model).nll.tolist() == held_out.nll(model).nll.tolist()


@pytest.mark.parametrize("length", [9, 16, 17, 50])
def test_long_documents_are_cut_into_windows_that_follow_one_another(length: int) -> None:
    """A window starts with the token before it and sees nothing else: it scores as a text of its own would."""
    model, text = tiny_llama(), "ab" * 25
    text = text[:length]
    scores = document_nll(model, [text], tiny_tokenizer(), max_length=16)
    ids = [0, *tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]]
    expected = 0.0
    for start in range(0, length, 16):
        window = torch.tensor([ids[start : start + 17]])
        logits = model.eval()(input_ids=window[:, :-1]).logits.detach()
        expected += float(token_nll(logits, window[:, 1:]).sum())
    assert scores.nll[0] == pytest.approx(expected, rel=1e-6)
    assert scores.tokens.tolist() == [length]


def test_by_default_windows_are_as_long_as_the_model_takes() -> None:
    model, text = tiny_llama(max_position_embeddings=32), "abc" * 30
    assert document_nll(model, [text], tiny_tokenizer()).nll.tolist() == (
        document_nll(model, [text], tiny_tokenizer(), max_length=32).nll.tolist()
    )


def test_a_subset_is_a_prefix_of_a_seeded_shuffle() -> None:
    held_out = EvaluationSet.from_documents(tiny_documents(), tiny_tokenizer())
    small, large = held_out.subset(3, seed=1), held_out.subset(7, seed=1)
    assert small.digests == large.digests[:3] and set(large.digests) < set(held_out.digests)
    assert small.digests != held_out.subset(3, seed=2).digests
    model = tiny_llama()
    parts = DocumentNLL.concatenate([large.take(range(3)).nll(model), large.take(range(3, 7)).nll(model)])
    np.testing.assert_allclose(parts.nll, large.nll(model).nll, rtol=1e-6)
    assert parts.sha256 == large.sha256


def test_modes_and_gradients_are_left_as_they_were() -> None:
    model = tiny_llama().train()
    model.model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    document_nll(model, ["abc"], tiny_tokenizer())
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_modes_are_left_as_they_were_on_an_error() -> None:
    model = tiny_llama().train()
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(NonFiniteLossError, match="NLL of nan for document 0"):
        document_nll(model, ["abc"], tiny_tokenizer())
    assert model.training and model.model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_token_nll_is_cross_entropy_in_at_least_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(3, 7, 11).to(dtype), torch.randint(11, (3, 7))
    targets[0, :3] = IGNORE_INDEX
    log_p = logits.double().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected = -log_p.masked_fill(targets == IGNORE_INDEX, 0.0)
    monkeypatch.setattr("hf_warmscale.evaluation.cross_entropy.CHUNK_ELEMENTS", 44)  # chunks of 4 rows, the last of 1
    nll = token_nll(logits, targets)
    assert nll.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(nll.double(), expected, rtol=1e-6, atol=1e-6)


def test_ignored_positions_cost_nothing_even_where_the_logits_are_nan() -> None:
    logits = torch.randn(2, 3, 5)
    logits[1, 2] = math.nan
    assert token_nll(logits, torch.tensor([[1, 2, 3], [4, 0, 7]]), ignore_index=7)[1, 2] == 0.0


def test_token_nll_has_the_gradient_of_the_loss_of_torch() -> None:
    logits, targets = torch.randn(6, 11, requires_grad=True), torch.tensor([0, 1, IGNORE_INDEX, 2, 10, 3])
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), logits)
    (gradient,) = torch.autograd.grad(token_nll(logits, targets).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_a_perplexity_that_overflows_is_infinite_and_null_in_json() -> None:
    scores = DocumentNLL(np.array([800.0]), np.array([1]), np.array([1]), ("a",))
    assert scores.perplexity == math.inf and scores.summary()["perplexity"] is None
    assert json.loads(json.dumps(scores.summary(), allow_nan=False))["nll"] == 800.0


def test_the_start_token_is_eos_where_there_is_no_bos() -> None:
    model = tiny_llama()
    by_bos = document_nll(model, ["abc"], tiny_tokenizer())
    by_eos = document_nll(model, ["abc"], tiny_tokenizer(bos=False))
    assert by_bos.nll[0] != by_eos.nll[0] and by_eos.tokens.tolist() == [3]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "at least one text"),
        ("abc", "pass a list"),
        (["abc", ""], "Document 1 is empty"),
        (["abc", "\n \t"], "Document 1 is empty"),
        (["abc", 3], "Document 1 is a int"),
        (["abc\ud83d"], "Document 0 has half a surrogate pair at position 3"),
    ],
)
def test_bad_documents(documents: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        document_nll(tiny_llama(), documents, tiny_tokenizer())


def test_a_tokenizer_without_a_start_token() -> None:
    with pytest.raises(ValueError, match="neither a bos_token nor an eos_token"):
        document_nll(tiny_llama(), ["abc"], tiny_tokenizer(bos=False, eos=False))


def test_a_tokenizer_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"gives id \d+, but the model's vocabulary has 50"):
        document_nll(tiny_llama(vocab_size=50), ["abc"], tiny_tokenizer())


def test_windows_longer_than_the_model_takes() -> None:
    with pytest.raises(ValueError, match="at most 32 positions, but max_length is 64"):
        document_nll(tiny_llama(max_position_embeddings=32), ["a" * 50], tiny_tokenizer(), max_length=64)


@pytest.mark.parametrize("setting", ["max_length", "batch_tokens"])
def test_lengths_must_be_positive(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is 0"):
        EvaluationSet.from_documents(["abc"], tiny_tokenizer(), **{setting: 0})


def test_a_better_model_scores_better() -> None:
    """A model pushed along the gradient of its own NLL gives the documents a higher likelihood."""
    model, documents = tiny_llama(), tiny_documents(4)
    before = document_nll(model, documents, tiny_tokenizer())
    ids = torch.tensor([[0, *tiny_tokenizer()(documents[0], add_special_tokens=False)["input_ids"]]])
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert document_nll(model, documents, tiny_tokenizer()).nll[0] < before.nll[0]


def test_bits_per_byte_are_of_bytes_whatever_the_tokens() -> None:
    """Twelve bits over three tokens and eight bytes."""
    scores = DocumentNLL(
        nll=np.array([8.0, 4.0]) * math.log(2), tokens=np.array([2, 1]), bytes=np.array([5, 3]), digests=("a", "b")
    )
    assert scores.bits_per_byte == pytest.approx(12 / 8)
    assert scores.mean == pytest.approx(4 * math.log(2))
    assert scores.perplexity == pytest.approx(2**4)
