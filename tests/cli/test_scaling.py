"""`warmscale scaling` at the command line: what is written and shown, and one sentence for every mistake."""

import json
from pathlib import Path

import pytest

from hf_warmscale.cli import main
from hf_warmscale.cli.scaling.quantity import candidate, quantity
from tests.cli.shell import assert_sentence, files_below
from tests.scaling.measurements import ladder, true_loss
from tests.scaling.run_folders import write_ladder, write_run

HEADER = "params,D,loss\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table under names of its own, in the working folder."""
    rows = ladder(noise=0.005)
    lines = [f"{n:.0f},{d:.0f},{loss}" for n, d, loss in zip(rows["N"], rows["D"], rows["loss"], strict=True)]
    (tmp_path / "runs.csv").write_text(HEADER + "\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_fit_then_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", "fit", "runs.csv", "--columns", "N=params", "--output", "law", "--bootstrap", "3"]) == 0
    names = {path.name for path in (folder / "law").iterdir()}
    assert names == {"law.json", "compute.png", "residuals.png", "rollout.png"}
    assert "Rollout" in capsys.readouterr().out
    command = "scaling plan --target 360M --tokens 5B --candidates 135M:100B --law law/law.json --output plan.json"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    assert "Advice:  Growing 135M" in out and "Assumed: The law is your own, fitted to 20 points." in out
    found = json.loads((folder / "plan.json").read_text())
    assert found["rows"][0]["loss"] == pytest.approx(true_loss(3.6e8, 5e9), rel=0.02)
    assert found["rows"][0]["interval"][0] < found["rows"][0]["loss"] < found["rows"][0]["interval"][1]


def test_predict_from_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(run) for run in write_ladder(folder / "ladder", (16, 32, 48, 64, 96))]
    state = json.loads((Path(runs[0]) / "checkpoint-10" / "stage.json").read_text())
    tokens = str(5 * state["progress"]["tokens"]["text"])
    assert main(["scaling", "predict", *runs, "--hidden-size", "128", "--tokens", tokens, "--bootstrap", "3"]) == 0
    assert "Predicted loss of one new run" in capsys.readouterr().out
    assert json.loads((folder / "prediction.json").read_text())["loss"] > 1.8


MISTAKES = {
    "a loss of 0": ("scaling fit zero.csv --output out", ["loss in row 1 is 0"]),
    "a loss of NaN": ("scaling fit nan.csv --output out", ["loss in row 2 is nan"]),
    "one size": ("scaling fit one.csv --output out", ["one size", "add sizes"]),
    "missing columns": ("scaling fit runs.csv --output out", ["no column N", "params"]),
    "another missing column": ("scaling fit runs.csv --columns N=size --output out", ["no column 'size'", "params"]),
    "duplicated runs": ("scaling fit twice.csv --output out", ["Rows 1 and 2", "'a'"]),
    "tokens of 0": ("scaling fit tokens.csv --output out", ["D in row 1 is 0"]),
    "no such table": ("scaling fit none.csv --output out", ["none.csv"]),
    "a run without a cooled point": ("scaling predict trunk --hidden-size 8 --tokens 9", ["trunk", "cooled"]),
    "no run": ("scaling predict empty --hidden-size 8 --tokens 9", ["trainer_state.json", "output_dir"]),
    "two sizes": ("scaling predict a --hidden-size 8 --num-parameters 9 --tokens 9", ["not allowed with"]),
    "a candidate too large": ("scaling plan --target 100M --tokens 5B --candidates 135M:2T", ["135M", "shrink it"]),
    "two budgets": ("scaling plan --target 360M --tokens 5B --flops 1e19", ["one budget", "tokens and flops"]),
    "no budget": ("scaling plan --target 360M", ["one budget"]),
    "no such law": ("scaling plan --target 360M --tokens 5B --law none.json", ["none.json"]),
    "a law that is none": (
        "scaling plan --target 360M --tokens 5B --law list.json",
        ["list.json", "not a scaling law"],
    ),
    "a number that is none": ("scaling plan --target 360M --tokens -5B", ["--tokens"]),
    "no such target": ("scaling plan --target ./none --tokens 5B", ["./none"]),
}

TABLES = {
    "zero": "N,D,loss\n1e7,1e9,0\n2e7,1e9,3\n",
    "nan": "N,D,loss\n1e7,1e9,3\n2e7,1e9,nan\n",
    "one": "N,D,loss\n1e7,1e9,3\n1e7,2e9,2.9\n",
    "twice": "N,D,loss,run\n1e7,1e9,3,a\n1e7,1e9,3,a\n",
    "tokens": "N,D,loss\n1e7,0,3\n2e7,1e9,3\n",
}


@pytest.mark.parametrize("command, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence(
    folder: Path, command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in TABLES.items():
        (folder / f"{name}.csv").write_text(text)
    (folder / "list.json").write_text("[]")
    (folder / "empty").mkdir()
    constant = {"name": "constant", "learning_rate": 0.01}
    write_run(folder / "trunk", hidden_size=16, tokens=1000, loss=5.0, schedule=constant)
    before = files_below(folder)
    assert_sentence(main(command.split()), capsys.readouterr(), *words)
    assert files_below(folder) == before


def test_numbers_as_people_write_them() -> None:
    assert [quantity(text) for text in ("360M", "5B", "1.5T", "1e21", "2e+9", "7K")] == [
        3.6e8,
        5e9,
        1.5e12,
        1e21,
        2e9,
        7e3,
    ]
    assert candidate("135M:2T") == (135_000_000, 2e12)
    assert candidate("runs/base") == ("runs/base", None)
    assert candidate("me/model@main:5B") == ("me/model@main", 5e9)
