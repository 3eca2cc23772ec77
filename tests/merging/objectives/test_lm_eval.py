"""Tasks of lm-eval as objectives."""

import json
from pathlib import Path

import pytest

from hf_warmscale.merging import lm_eval_loss, search_merge
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer

TASK = """
task: odd_ending
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task of twelve questions."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install hf-warmscale[eval]")
    rows = [{"question": f"letter {index} is ", "answer": index % 2} for index in range(12)]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "odd_ending.yaml").write_text(TASK.format(file=tmp_path / "rows.json"))
    return tmp_path


def test_each_example_has_a_loss(tasks: Path) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    whole = lm_eval_loss("odd_ending", tokenizer, include_path=tasks)(model)
    half = lm_eval_loss("odd_ending", tokenizer, include_path=tasks, examples=range(1, 12, 2))(model)
    assert isinstance(whole, list) and isinstance(half, list)
    assert set(whole) <= {0.0, 1.0} and len(whole) == 12
    assert half == whole[1::2]


def test_a_task_is_searched_on_one_half_and_judged_on_the_other(trajectory: list[Path], tasks: Path) -> None:
    halves = [
        lm_eval_loss("odd_ending", tiny_tokenizer(), include_path=tasks, examples=range(first, 12, 2))
        for first in (0, 1)
    ]
    result = search_merge(trajectory[-2:], select=halves[0], confirm=halves[1], n_trials=3)
    assert -1.0 <= result.interval.low <= result.interval.high <= 1.0


def test_an_unknown_metric_is_refused(tasks: Path) -> None:
    loss = lm_eval_loss("odd_ending", tiny_tokenizer(), include_path=tasks, metric="bleu")
    with pytest.raises(ValueError, match="has no number 'bleu' per example; its metrics are acc"):
        loss(tiny_llama())


def test_public_benchmarks_are_refused() -> None:
    with pytest.raises(ValueError, match="public benchmark hellaswag"):
        lm_eval_loss("hellaswag", tiny_tokenizer())
