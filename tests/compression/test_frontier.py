"""The frontier: what is counted and measured, which rows pay, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hf_warmscale import compression_frontier
from hf_warmscale.architecture import describe
from hf_warmscale.compression.compressed import Compression, compressed
from hf_warmscale.compression.frontier import NamedOrLive
from hf_warmscale.compression.frontier_row import FrontierRow, with_pareto_flags
from hf_warmscale.compression.quantization import fake_quantize
from hf_warmscale.compression.storage import stored_bytes
from hf_warmscale.evaluation import PairedDifference, document_nll
from tests.cli.workspace import make_tokenizer
from tests.conftest import perturb
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer
from tests.training.tiny import tiny_model

TEXTS = tiny_documents(6)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


def gpt2() -> GPT2LMHeadModel:
    """Its weights are stored `[in, out]`, and its readout is its embedding."""
    made = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    perturb(made, std=0.05)
    return made


@pytest.mark.parametrize("make", [lambda: tiny_model(dropout=0.0), gpt2])
def test_inside_the_block_the_weights_are_compressed_and_after_it_they_are_back(make: Any) -> None:
    model: PreTrainedModel = make()
    described = describe(model.config)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    matrix = next(each for each in described.with_role("hidden") if each.component == "mlp")
    weight = model.get_parameter(matrix.name)
    how = Compression(4, 0.5, None, ("hidden",), ("embedding", "hidden", "readout"))
    with compressed(model, described, how) as size:
        hidden = [model.get_parameter(each.name) for each in described.with_role("hidden")]
        assert sum(int((each == 0).sum()) for each in hidden) >= sum(each.numel() for each in hidden) // 2
        expected = before[matrix.name].masked_fill(weight == 0, 0.0)
        assert matrix.fan_in is not None
        rows = fake_quantize(expected.movedim(matrix.fan_in, -1), 4)
        assert torch.equal(weight.movedim(matrix.fan_in, -1), rows)
        by_hand = 0
        for name, each in described.parameters.items():
            value = model.get_parameter(name)
            rows = value if each.fan_in is None else value.movedim(each.fan_in, -1)
            rounded = each.role in ("embedding", "hidden", "readout")
            by_hand += stored_bytes(rows, 4 if rounded else None, sparse=each.role == "hidden")
        assert size == by_hand
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failure_inside_the_block_leaves_the_weights_as_they_were(model: LlamaForCausalLM) -> None:
    before = [weight.detach().clone() for weight in model.parameters()]
    how = Compression(2, 0.9, 4, ("hidden",), ("hidden",))
    with pytest.raises(RuntimeError), compressed(model, describe(model.config), how):
        raise RuntimeError
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_rows_are_what_measuring_by_hand_gives(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    other = LlamaForCausalLM(model.config)
    model.save_pretrained(tmp_path / "stored")
    models: dict[str, NamedOrLive] = {"one": model, "two": other, "three": tmp_path / "stored"}
    frontier = compression_frontier(models, bits=[8, 16], sparsities=[0, 0.5], documents=TEXTS, tokenizer=tokenizer)
    rows = {(row.model, row.bits, row.sparsity): row for row in frontier.rows}
    assert len(frontier.rows) == 3 * (1 + 2 * 2)
    plain = document_nll(model, TEXTS, tokenizer)
    first = rows["one", None, 0.0]
    assert first.nll == plain.mean and first.difference.estimate == 0 and first.difference.high == 0
    assert first.bytes == sum(4 * weight.numel() for weight in model.parameters())
    how = Compression(8, 0.5, None, ("hidden",), ("embedding", "hidden", "readout"))
    with compressed(model, describe(model.config), how) as size:
        by_hand = document_nll(model, TEXTS, tokenizer)
    row = rows["one", 8, 0.5]
    assert (row.bytes, row.nll) == (size, by_hand.mean)
    assert row.difference.estimate == pytest.approx(by_hand.mean - plain.mean)
    assert row.difference.low <= row.difference.estimate <= row.difference.high
    assert rows["three", 8, 0.5] == replace(row, model="three")
    assert rows["two", None, 0.0].difference.estimate != 0
    written = frontier.save(tmp_path)
    assert [path.name for path in written] == ["frontier.json", "frontier.png"]
    record = json.loads(written[0].read_text())
    assert record["reference"] == "one" and len(record["rows"]) == len(frontier.rows)
    assert record["rows"][0]["bytes"] == first.bytes
    assert written[1].stat().st_size > 10_000


def test_pareto_flags_are_those_of_the_definition() -> None:
    difference = PairedDifference(0.0, 0.0, 0.0, 0.95)
    points = [(1, 5.0), (2, 4.0), (2, 4.5), (3, 4.0), (4, 1.0), (4, 1.0), (5, float("inf"))]
    rows = [FrontierRow("m", 8, 0.0, size, nll, difference) for size, nll in points]
    assert [row.pareto for row in with_pareto_flags(rows)] == [True, True, False, False, True, True, False]


def test_a_model_that_breaks_is_a_row_without_a_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    broken = LlamaForCausalLM(model.config)
    broken.model.norm.weight.data.fill_(float("inf"))
    frontier = compression_frontier(
        {"whole": model, "broken": broken}, bits=[8], sparsities=[0], documents=TEXTS, tokenizer=tokenizer
    )
    lost = [row for row in frontier.rows if row.model == "broken"]
    assert all(np.isinf(row.nll) and not row.pareto for row in lost)
    frontier.save(tmp_path)
    assert json.loads((tmp_path / "frontier.json").read_text())["rows"][-1]["nll"] is None
    with pytest.raises(ValueError, match=r"^broken gives no finite loss as it is stored"):
        compression_frontier({"broken": broken}, bits=[8], sparsities=[0], documents=TEXTS, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bits": [1]}, "bits is 1; give 2 to 8"),
        ({"bits": [33]}, "bits is 33"),
        ({"sparsities": [1.0]}, "A sparsity is 1;"),
        ({"sparsities": [-0.1]}, "A sparsity is -0.1"),
        ({"group_size": 0}, "group_size is 0"),
        ({"prune_roles": ["hiden"]}, "did you mean 'hidden'"),
        ({"documents": []}, "pass a list with at least one text"),
        ({"models": []}, "no model to compress"),
    ],
)
def test_bad_input_is_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], sentence: str
) -> None:
    given = {"models": model, "bits": [8], "sparsities": [0], "documents": TEXTS, "tokenizer": tokenizer, **settings}
    with pytest.raises(ValueError, match=sentence):
        compression_frontier(given.pop("models"), **given)


def test_a_quantized_source_is_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quanti"):
        compression_frontier(tmp_path, bits=[8], sparsities=[0], documents=TEXTS, tokenizer=tokenizer)


def test_a_tokenizer_of_another_model_is_refused_of_a_live_model_too(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    other = make_tokenizer()
    other.save_pretrained(tmp_path)
    given: dict[str, Any] = {"bits": [8], "sparsities": [0], "documents": TEXTS, "tokenizer": tokenizer}
    for source in (tmp_path, LlamaForCausalLM.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=r"The given tokenizer and that of .* do not share a vocabulary"):
            compression_frontier(source, **given)
    with pytest.raises(ValueError, match="gives ids up to 299, but the model has 258 rows"):
        compression_frontier(model, **{**given, "tokenizer": other})
