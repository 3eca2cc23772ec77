"""A study's folder holds runs of one study only, each once, each with its provenance, and none is lost."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_warmscale.studies import Study, content_hash, open_study, provenance_line, read_runs, tokens_hash, write_result
from hf_warmscale.studies import study as study_module
from hf_warmscale.studies.provenance import commit_of, package_hash, software
from hf_warmscale.studies.study import differences

CONFIG = {"task": {"steps": 500, "betas": (0.9, 0.95)}, "lrs": [0.1, 0.2]}


def opened(folder: Path, **changes: Any) -> Study:
    return open_study(folder, CONFIG, **{"tokens": "a" * 64, **changes})


def test_a_run_is_stored_once_with_its_provenance(tmp_path: Path) -> None:
    study = opened(tmp_path)
    assert study.attempt("base/lr-0.1", lambda: {"loss": 3.5}, {"lr": 0.1})
    assert not study.attempt("base/lr-0.1", lambda: pytest.fail("a stored run was repeated"), {"lr": 0.1})
    (stored,) = read_runs(tmp_path / "base")
    provenance = stored.pop("provenance")
    assert stored == {"lr": 0.1, "loss": 3.5, "diverged": False}
    assert list(provenance["software"]) == ["hf_warmscale", "torch", "transformers"]
    assert package_hash()[:12] in provenance["software"]["hf_warmscale"]
    assert provenance["config"] == content_hash(CONFIG) and provenance["tokens"] == "a" * 64
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["lr-0.1.json", "study.json"]


def test_provenance_names_no_path(tmp_path: Path) -> None:
    study = opened(tmp_path, code=Path(__file__).parent)
    study.attempt("run", lambda: {"loss": 1.0}, {})
    text = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    for path in (str(tmp_path), str(Path.home()), str(Path.cwd()), os.sep + "site-packages"):
        assert path not in text


def test_the_commit_is_that_of_the_code() -> None:
    own = commit_of(Path(__file__).parent)
    if own is None:
        pytest.skip("the tests are not in a git repository")
    assert len(own.partition("+")[0]) == 40


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {**CONFIG, "lrs": [0.1, 0.3]}}, r"config.lrs is \[0.1, 0.2\] there and \[0.1, 0.3\] here"),
        ({"config": {**CONFIG, "more": 1}}, "config.more is unknown there and 1 here"),
        ({"tokens": "b" * 64}, "tokens is aaaaaaaaaaaa... there and bbbbbbbbbbbb... here"),
        ({"tokens": None}, "tokens is aaaaaaaaaaaa... there and unknown here"),
    ],
    ids=["config", "another key", "tokens", "no tokens"],
)
def test_another_study_is_refused_with_both_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    opened(tmp_path)
    opened(tmp_path)  # the same study again
    with pytest.raises(ValueError, match=f"holds the runs of another study: {named}; name a new folder"):
        open_study(tmp_path, **{"config": CONFIG, "tokens": "a" * 64, **change})


def test_another_version_is_refused_with_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    here = software()["hf_warmscale"]
    monkeypatch.setattr(study_module, "software", lambda: {**software(), "hf_warmscale": "0.0.9"})
    with pytest.raises(ValueError) as refused:
        opened(tmp_path)
    assert f"software.hf_warmscale is {here} there and 0.0.9 here" in str(refused.value)


def test_runs_without_provenance_are_read_and_not_added_to(tmp_path: Path) -> None:
    """What was stored before there was provenance: the config alone in `study.json`, bare runs beside it."""
    (tmp_path / "study.json").write_text(json.dumps({"task": {"steps": 500}}))
    (tmp_path / "old.json").write_text(json.dumps({"size": 32, "loss": 3.1}))
    assert read_runs(tmp_path) == [{"size": 32, "loss": 3.1}]
    with pytest.raises(ValueError, match=r"software\.hf_warmscale is unknown there"):
        open_study(tmp_path, {"task": {"steps": 500}})


def test_results_without_a_study_are_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "seed0.json").write_text('{"loss": 3.1}')
    with pytest.raises(ValueError, match=r"holds results and no study\.json; name a new folder"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"format_version": 99}', "format version 99, and this version of hf_warmscale reads 1; update it"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_a_study_that_cannot_be_read(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        opened(tmp_path)


def test_a_damaged_run_says_what_to_do(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.path("run").write_text('{"loss": ')
    with pytest.raises(ValueError, match=r"run\.json is damaged .*; delete it to run it again"):
        study.result("run")


def test_a_diverged_run_is_kept_counted_and_shown(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.attempt("low", lambda: {"loss": 3.5}, {})
    study.attempt("high", lambda: {"loss": math.nan, "curve": [{"step": 1, "loss": math.inf}]}, {})
    assert study.result("high")["loss"] is None
    assert study.result("high")["curve"] == [{"step": 1, "loss": None}]
    assert study.summary(["low", "high", "higher"]) == "2 of 3 runs done, 1 diverged (high)"


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    study = opened(tmp_path)

    def fail() -> dict[str, Any]:
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        study.attempt("run", fail, {})
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


def test_a_result_beside_all_studies_has_its_provenance_too(tmp_path: Path) -> None:
    for loss in (math.nan, 3.5):
        write_result(tmp_path / "new" / "table.json", {"rows": [{"loss": loss}]})
        stored = json.loads((tmp_path / "new" / "table.json").read_text())
        assert stored["rows"] == [{"loss": None if math.isnan(loss) else 3.5}]
    assert stored["provenance"]["software"] == software()


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path: Path) -> None:
    study = opened(tmp_path)
    tried: list[bool] = []

    def while_held() -> dict[str, Any]:
        tried.append(opened(tmp_path).attempt("run", dict, {}))
        return {"loss": 1.0}

    assert study.attempt("run", while_held, {})
    assert tried == [False]


def test_hashes_see_content_only() -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1}) != content_hash({"a": 1, "b": [3]})
    ids = np.arange(6)
    assert tokens_hash([ids]) == tokens_hash([ids.astype(np.uint16)])
    assert len({tokens_hash(parts) for parts in ([ids], [ids[::-1]], [ids[:3], ids[3:]])}) == 3


def test_a_report_of_several_versions_has_to_say_so() -> None:
    one, other = ({"provenance": {"software": {"hf_warmscale": number}, "commit": None}} for number in ("1", "2"))
    assert provenance_line([one, one]) == "2 runs with hf_warmscale 1"
    with pytest.raises(ValueError, match="of 2 versions"):
        provenance_line([one, other])
    assert provenance_line([one, other, {}], mixed=True) == (
        "1 run with hf_warmscale 1; 1 run with hf_warmscale 2; 1 run without stored provenance"
    )


def test_differences_are_named_by_their_place() -> None:
    assert list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": 3})) == [
        "a.c is 2 there and unknown here",
        "d is unknown there and 3 here",
    ]
