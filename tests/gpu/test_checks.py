"""The script for a GPU cannot rot: its checks run on the CPU with tiny models, and it reports what fails."""

import json
from pathlib import Path

import pytest
import torch

from tests.gpu import __main__ as script
from tests.gpu import registry
from tests.gpu.registry import Figures, Machine, record, require

HERE = ("bf16_training", "mup_training", "distillation", "packing_sdpa", "likelihood", "growing", "merging",
        "throughput", "distillation_step", "speculative_decoding")  # fmt: skip
"""Not the engines, which are started twice each and have tests of their own, nor the compiler."""


@pytest.mark.parametrize("name", HERE)
def test_a_check_passes_on_the_cpu(name: str) -> None:
    found = record(name, Machine(torch.device("cpu"), tiny=True))
    assert found["status"] == "passed", found
    assert found["figures"]


def test_what_a_machine_lacks_is_a_reason() -> None:
    for name in ("packing_flash", "fsdp2"):
        found = record(name, Machine(torch.device("cpu"), tiny=True))
        assert found["status"] == "skipped" and found["reason"].endswith("alone.")


def test_a_failure_is_one_sentence_and_keeps_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(machine: Machine, figures: Figures) -> None:
        figures["seen"] = 3
        require(figures["seen"] == 2, "There are 3 instead of 2.")

    def broken(machine: Machine, figures: Figures) -> None:
        torch.ones(2) @ torch.ones(3)

    monkeypatch.setattr(registry, "CHECKS", {"wrong": wrong, "broken": broken})
    machine = Machine(torch.device("cpu"), tiny=True)
    found = record("wrong", machine)
    assert (found["status"], found["error"], found["figures"]) == ("failed", "There are 3 instead of 2.", {"seen": 3})
    assert record("broken", machine)["error"].startswith("RuntimeError: inconsistent tensor size")


def test_the_command_runs_each_check_apart_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some end by themselves, for others there is no time left, and one takes too long."""
    options = ["--device", "cpu", "--tiny", "--output", str(tmp_path / "gpu.json"), "--only"]
    assert script.main([*options, "fsdp2", "likelihood"]) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written == json.loads(capsys.readouterr().out)
    assert [each["status"] for each in written["checks"]] == ["skipped", "passed"]
    assert written["device"] == "cpu" and written["versions"]["torch"] == torch.__version__
    assert script.main([*options, "likelihood", "merging", "--minutes", "0"]) == 1
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert {each["error"] for each in written["checks"]} == {"It was not begun within 0 minutes."}
    monkeypatch.setattr(script, "CHECK_SECONDS", 0.1)
    assert script.main([*options, "growing", "merging"]) == 1
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [each["error"] for each in written["checks"]] == ["It was stopped after 0 s."] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 2
    assert capsys.readouterr().err == "There is no CUDA GPU here; try the checks with --device cpu --tiny.\n"
