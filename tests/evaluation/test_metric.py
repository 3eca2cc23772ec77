"""`evaluate.load` takes the metric from its folder, without a network."""

from pathlib import Path

import evaluate
import pytest

from hf_warmscale.evaluation import METRIC_PATH, document_nll
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer


@pytest.fixture
def metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> evaluate.EvaluationModule:
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", tmp_path / "modules")
    return evaluate.load(METRIC_PATH, cache_dir=str(tmp_path / "cache"))


def test_the_metric_gives_what_the_function_gives(metric: evaluate.EvaluationModule) -> None:
    model, documents = tiny_llama(), tiny_documents(5)
    result = metric.compute(predictions=documents, model=model, tokenizer=tiny_tokenizer())
    scores = document_nll(model, documents, tiny_tokenizer())
    assert result["nll_per_document"] == scores.nll.tolist()
    assert {key: result[key] for key in scores.summary()} == scores.summary()


def test_the_metric_loads_a_saved_model(metric: evaluate.EvaluationModule, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    result = metric.compute(predictions=["abc", "de"], model=str(tmp_path / "model"))
    assert result["nll"] == pytest.approx(document_nll(tiny_llama(), ["abc", "de"], tiny_tokenizer()).mean)


def test_a_live_model_needs_its_tokenizer(metric: evaluate.EvaluationModule) -> None:
    with pytest.raises(ValueError, match="pass tokenizer"):
        metric.compute(predictions=["abc"], model=tiny_llama())
