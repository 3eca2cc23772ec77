"""The line between two checkpoints at fixed points: its ends are the checkpoints, its best point is confirmed."""

from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_warmscale import document_nll
from hf_warmscale.checkpoints import load_tokenizer
from hf_warmscale.merging import merge_checkpoints, sweep_alphas


def test_the_ends_of_the_line_are_the_checkpoints(
    trajectory: list[Path], splits: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    select, confirm = splits
    start, end = trajectory[0], trajectory[-1]
    halves = {"first": select[::2], "second": select[1::2]}
    others = {"first": confirm[::2], "second": confirm[1::2]}
    sweep = sweep_alphas(start, end, select=halves, confirm=others, alphas=(0.0, 0.5, 1.0), output=tmp_path / "out")
    tokenizer = load_tokenizer(end)
    for row, folder in zip(sweep.rows[::2], (start, end), strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder)
        for name, documents in halves.items():
            assert row[name] == pytest.approx(document_nll(model, documents, tokenizer).mean, rel=1e-6)
    assert sweep.alpha == min(sweep.rows, key=lambda row: row["loss"])["alpha"]
    weight = float(cast(tuple[float, ...], sweep.confirmation.weights)[1])
    merge_checkpoints([start, end], tmp_path / "merged", weights=[1 - weight, weight])
    written, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "merged"))
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[name])


def test_a_line_without_points_is_refused(trajectory: list[Path], splits: tuple[list[str], list[str]]) -> None:
    for alphas in ((), (float("nan"),)):
        with pytest.raises(ValueError, match=r"alphas are .*give at least one"):
            sweep_alphas(trajectory[0], trajectory[1], select=splits[0], confirm=splits[1], alphas=alphas)
