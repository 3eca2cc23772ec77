"""What a growth says about itself: in the model, in the config, in the folder; and what it warns of."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_warmscale.resize import GrowthReceipt, grow_checkpoint, grow_from_pretrained
from hf_warmscale.resize.growing.receipt import growth_warnings
from hf_warmscale.resize.growing.replay import read_receipt, replay_growth
from tests.resize.families import FAMILIES, random_model


@pytest.fixture(scope="module")
def source() -> PreTrainedModel:
    return random_model(FAMILIES["llama"](True), dtype=torch.float32)


def test_memory_config_and_folder_tell_the_same(source: PreTrainedModel, tmp_path: Path) -> None:
    source.save_pretrained(tmp_path / "source")
    request: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "depth": "identity", "seed": 7}
    grown = grow_from_pretrained(tmp_path / "source", **request)
    stored = grow_checkpoint(tmp_path / "source", tmp_path / "grown", **request, verify=True)
    in_memory = GrowthReceipt.from_dict(grown.growth_receipt)  # type: ignore[arg-type]
    assert in_memory == stored
    assert GrowthReceipt.from_dict(json.loads((tmp_path / "grown/growth_receipt.json").read_text())) == stored
    assert read_receipt(grown.config, "grown").config_entry() == stored.config_entry()
    assert stored.source_sizes["hidden_size"] == 32 and stored.sizes["hidden_size"] == 64 and stored.seed == 7
    assert stored.growth_factor == pytest.approx(grown.num_parameters() / source.num_parameters())
    assert stored.verification is not None
    assert stored.verification.max_abs_logit_difference <= stored.verification.rounding
    assert len(stored.verification.activation_rms["target"]) == 3


def test_a_receipt_remakes_its_maps(source: PreTrainedModel) -> None:
    for request in (
        {"hidden_size": 64, "num_attention_heads": 8, "width": "net2net", "seed": 3},
        {"num_hidden_layers": 4, "depth": "identity", "insert_after": [0, 0]},
        {"num_hidden_layers": 4, "depth": "interleave", "vocab_size": 80},
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grown = grow_from_pretrained(source, **request, verify=False)  # type: ignore[arg-type]
        plan = replay_growth(source.config, read_receipt(grown.config, "grown")).plan
        receipt: Any = grown.growth_receipt
        assert list(plan.layers.source) == receipt["layers"]
        for name, weight in grown.state_dict().items():
            if name in plan.target.parameters:
                assert plan.transfer(name).shape == weight.shape


@pytest.mark.parametrize("request_", [{"width": "net2net"}, {"snr_db": None}])
def test_copies_that_cannot_part_are_warned_of(source: PreTrainedModel, request_: dict[str, Any]) -> None:
    """Also where the copies are few beside an embedding that does not grow."""
    doubled = 2 * source.config.intermediate_size
    with pytest.warns(UserWarning, match="Copies without noise"):
        grow_from_pretrained(source, intermediate_size=doubled, **request_, verify=False)


def test_duplicates(source: PreTrainedModel) -> None:
    """Half of a doubled stack of blocks is repetition; noise leaves nothing that repeats among matrices."""
    stacked: Any = grow_from_pretrained(source, num_hidden_layers=4, verify=False).growth_receipt
    blocks = sum(w.numel() for name, w in source.state_dict().items() if ".layers." in name)
    assert stacked["duplicate_fraction"] == pytest.approx(blocks / stacked["parameters"])
    with pytest.warns(UserWarning, match="stay copies"):
        plain: Any = grow_from_pretrained(source, hidden_size=64, snr_db=None, verify=False).growth_receipt
    noisy: Any = grow_from_pretrained(source, hidden_size=64, verify=False).growth_receipt
    assert plain["duplicate_fraction"] == pytest.approx(0.5, abs=0.02)
    assert noisy["duplicate_fraction"] < plain["duplicate_fraction"] / 2


def test_warnings(source: PreTrainedModel) -> None:
    grown = grow_from_pretrained(source, hidden_size=64)
    receipt = GrowthReceipt.from_dict(grown.growth_receipt)  # type: ignore[arg-type]
    assert not growth_warnings(receipt, target_tokens=20 * receipt.parameters)
    assert "20" in growth_warnings(receipt, target_tokens=21 * receipt.parameters)[0]
    receipt.growth_factor = 4.1
    assert "4.1-fold" in growth_warnings(receipt, None)[0]
    receipt.growth_factor = 2.0
    assert receipt.verification is not None
    moved = {**receipt.to_dict()["verification"], "max_abs_logit_difference": 0.2}
    receipt = GrowthReceipt.from_dict({**receipt.to_dict(), "verification": moved})
    assert "more than rounding explains" in growth_warnings(receipt, None)[0]
