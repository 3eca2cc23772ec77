"""What scripts of studies share: which runs are wanted, and what is listed."""

from pathlib import Path

import pytest

from hf_warmscale.studies import PlannedRun, StudyOptions, listing, open_study, run_all, study_options, wanted_runs

PLAN = [
    PlannedRun("healed", after=("grown",)),
    PlannedRun("base"),
    PlannedRun("grown", after=("base", "stored elsewhere")),
    PlannedRun("other"),
]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([""], ["healed", "base", "grown", "other"]),
        (["heal"], ["healed", "base", "grown"]),
        (["other", "base"], ["base", "other"]),
        (["none"], []),
    ],
)
def test_what_a_run_needs_comes_along(parts: list[str], expected: list[str]) -> None:
    assert [run.name for run in wanted_runs(PLAN, parts)] == expected


def test_options_and_listing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--corpora", "text", "--work", "work", "--output", str(tmp_path), "--only", "base", "--list"]
    options = study_options("What it does.", words, quiet=False)
    assert options == StudyOptions(Path("text"), Path("work"), tmp_path, ("base",), list=True, smoke=False)
    run_all(open_study(tmp_path, {}), wanted_runs(PLAN, options.only), lambda run: {})
    assert listing(PLAN[1:3], tmp_path) == "stored  base\nto run  grown"
    with pytest.raises(SystemExit):
        study_options("What it does.", ["--help"])
    assert "What it does." in capsys.readouterr().out
