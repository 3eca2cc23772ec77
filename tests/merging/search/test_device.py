"""A search on a device without float64 gives the result of the CPU."""

from pathlib import Path

import pytest
import torch

from hf_warmscale.checkpoints import save_model
from hf_warmscale.merging import CheckpointCombiner, search_merge
from hf_warmscale.merging.search.ranks import Ranks
from hf_warmscale.merging.sources import CheckpointSource
from hf_warmscale.options import SpaceName
from tests.evaluation.tiny import tiny_llama, tiny_tokenizer
from tests.fake_device import DEVICE, DeviceWithoutFloat64
from tests.merging.test_lora import adapter

Splits = tuple[list[str], list[str]]


@pytest.mark.parametrize("space", ["pair", "groups"])
def test_a_search(
    space: SpaceName, trajectory: list[Path], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select, confirm = splits[0][:20], splits[1][:20]

    def search(output: Path) -> tuple[list[float], float]:
        result = search_merge(
            trajectory[-2:], select=select, confirm=confirm, space=space, n_trials=4, tolerance=0, output=output
        )
        assert result.study is not None
        return [trial.values[0] for trial in result.study.trials], result.interval.estimate

    on_cpu = search(tmp_path / "cpu")
    monkeypatch.setattr(Ranks, "device", DEVICE)
    with DeviceWithoutFloat64():
        on_device = search(tmp_path / "device")
    assert on_device[0] == pytest.approx(on_cpu[0], abs=1e-5)
    assert on_device[1] == pytest.approx(on_cpu[1], abs=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny_llama(), tmp_path / "base", tokenizer=tiny_tokenizer())
    adapters = [adapter(tmp_path / "base", tmp_path / f"adapter-{seed}", seed) for seed in (1, 2)]
    monkeypatch.setattr(Ranks, "device", DEVICE)
    with DeviceWithoutFloat64():
        result = search_merge(adapters, select=splits[0][:8], confirm=splits[1][:8], space="lora", n_trials=3)
    assert result.num_trials == 3


def test_float64_checkpoints_are_summed_on_it(tmp_path: Path) -> None:
    """Stored in float64, and live in what the device has."""
    for step in (1, 2):
        save_model(tiny_llama(seed=step).double(), tmp_path / f"checkpoint-{step}", tokenizer=tiny_tokenizer())
    folders = [tmp_path / f"checkpoint-{step}" for step in (1, 2)]
    source = CheckpointSource(folders, torch.device("cpu"))
    source.combine((0.5, 0.5))
    with DeviceWithoutFloat64():
        model = tiny_llama().to(DEVICE)  # type: ignore[arg-type]
        CheckpointCombiner(model, source.checkpoints).combine((0.5, 0.5))
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.cpu(), source.model.get_parameter(name).detach().float())
