"""Receipts name their sources without paths, and refuse what a newer version wrote."""

from pathlib import Path

import pytest

from hf_warmscale.checkpoints import check_format_version, open_checkpoint, public_name
from tests.checkpoints.tiny import tiny_folder


def test_public_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "base"
    folder.mkdir(parents=True)
    for source in (folder, str(folder), "runs/base", Path("runs/base"), "./runs/base", f"{folder}/"):
        assert public_name(source) == "./base"
    assert public_name("~/gone/base") == public_name("/gone/base") == "./base"
    assert public_name("org/model@step1000") == "org/model" and public_name("gpt2") == "gpt2"


def test_a_checkpoint_is_named_without_its_path(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "base")
    assert open_checkpoint(tmp_path / "base").source.identity == "./base"


def test_newer_formats_are_refused() -> None:
    check_format_version({}, 1, "growth receipt")
    check_format_version({"format_version": 2}, 2, "growth receipt")
    with pytest.raises(ValueError, match=r"growth receipt has the format version 3, .* up to 2; update hf_warmscale"):
        check_format_version({"format_version": 3}, 2, "growth receipt")
    with pytest.raises(ValueError, match="format version 'x'"):
        check_format_version({"format_version": "x"}, 2, "growth receipt")
