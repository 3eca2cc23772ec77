"""The whole pipeline, interrupted and resumed, and what it leaves behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_warmscale.quickstart import run_quickstart
from hf_warmscale.quickstart.settings import MIN_TOKENS, Settings
from hf_warmscale.quickstart.text import END_OF_TEXT, ROUND, texts_in
from hf_warmscale.studies import read_runs

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.xdist_group("quickstart"),  # the finished run is made once, on the worker that launches from it
]

USE_MODEL = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
text = tokenizer("Return the", return_tensors="pt")
print(model.generate(**text, max_new_tokens=5, do_sample=False).shape[1] - text["input_ids"].shape[1])
assert "hf_warmscale" not in sys.modules
"""


def test_the_report_says_what_was_measured(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert set(report["losses"]) >= {"base", "grown", "trained-on", "scratch", "continued", "no-replay", "merged"}
    for row in report["comparisons"]:
        measured = report["losses"][row["model"]][row["domain"]]["nll"]
        control = report["losses"][row["control"]][row["domain"]]["nll"]
        assert row["estimate"] == pytest.approx(measured - control, abs=1e-12)
        below, above = row["high"] < 0, row["low"] > 0
        assert row["verdict"] == ("lower" if below else "higher" if above else "not told apart")
    assert f"{report['comparisons'][0]['estimate']:+.3f}" in (finished / "report.md").read_text()
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_run_is_stored_with_its_provenance(finished: Path) -> None:
    runs = {run["hidden_size"]: run for run in read_runs(finished / "results")}
    assert len(read_runs(finished / "results")) == 6 and set(runs) == {64, 128}
    assert len({(run["provenance"]["tokens"], run["provenance"]["config"]) for run in runs.values()}) == 1
    report = json.loads((finished / "report.json").read_text())
    assert report["provenance"].startswith("6 runs with hf_warmscale")
    grown, trained_on, scratch = report["charged"]
    assert grown["tokens"] == trained_on["tokens"] == scratch["tokens with the base's"]
    assert grown["TFLOP with the base's"] > grown["TFLOP"] == scratch["TFLOP with the base's"] > trained_on["TFLOP"]


def test_the_model_is_stock(finished: Path) -> None:
    """It loads and generates in a process that never imports this package."""
    run = subprocess.run(
        [sys.executable, "-c", USE_MODEL, str(finished / "model")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert 1 <= int(run.stdout) <= 5


def test_splits_share_no_document(finished: Path) -> None:
    texts = {path.stem: set(path.read_text().splitlines()) for path in (finished / "data" / "text").glob("*.jsonl")}
    names = sorted(texts)
    assert len(names) == 10
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert not texts[name] & texts[other], (name, other)


def test_another_setting_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match="seed is 0 there and 1 here; name a new folder"):
        run_quickstart(finished, tokens=MIN_TOKENS, seed=1)


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ValueError, match="not empty"):
        run_quickstart(tmp_path, tokens=MIN_TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_study_is_refused_untouched(tmp_path: Path, content: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "study.json").write_text(content)
    with pytest.raises(ValueError, match=r"study\.json is damaged .*; name a new folder"):
        run_quickstart(tmp_path, tokens=MIN_TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        Settings(tokens=MIN_TOKENS - 1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"The seed is {seed}; it must lie between 0 and 4294967295"):
        Settings(seed=seed)


def test_too_large_a_budget_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that says which budget it is for would refuse the smaller one that the sentence asks for."""
    monkeypatch.setattr("hf_warmscale.quickstart.text.DISTRIBUTIONS", ("accelerate",))
    with pytest.raises(ValueError, match="use a smaller token budget"):
        run_quickstart(tmp_path / "run", tokens=100_000_000)
    assert list((tmp_path / "run").iterdir()) == []


def test_prose_and_code_are_taken_apart(tmp_path: Path) -> None:
    doc, body = " ".join(["What it does."] * 40), "\n".join(f"    value_{i} = {i}" for i in range(60))
    (tmp_path / "module.py").write_text(f'def work():\n    """{doc}"""\n{body}\n')
    texts = dict(texts_in(tmp_path / "module.py"))
    assert texts["prose"] == doc
    assert "value_59 = 59" in texts["code"] and "What it does" not in texts["code"]


def test_text_that_spells_the_end_of_text_is_left_out(tmp_path: Path) -> None:
    """The installed packages do, and a document would end there."""
    doc = " ".join(["What it does."] * 40)
    (tmp_path / "module.py").write_text(f'def work():\n    """{doc} {END_OF_TEXT}"""\n')
    assert texts_in(tmp_path / "module.py") == []


def test_held_out_files_are_a_quarter() -> None:
    assert sum(split in ("evaluation", "select", "confirm") for split in ROUND) / len(ROUND) == 0.25
