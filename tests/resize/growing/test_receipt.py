"""What a growth says about itself: in the model, in the config, in the folder; and what it warns of."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_warmscale.resize import GrowthReceipt, ShrinkReceipt, grow_checkpoint, grow_from_pretrained
from hf_warmscale.resize.growing.receipt import growth_warnings, read_receipt
from hf_warmscale.resize.growing.replay import replay_growth
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
    with pytest.warns(UserWarning, match="never differ"):
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


OLD = Path(__file__).parents[1] / "receipts_of_0_1_0"


def test_receipts_of_version_0_1_0_are_read() -> None:
    """`obstacle` has another name now, and the path of the source is not published."""
    content = json.loads((OLD / "growth_receipt.json").read_text())
    receipt = GrowthReceipt.from_dict(content)
    assert receipt.inexact_because == content["obstacle"] and receipt.source == "./base"
    assert receipt.verification is not None and receipt.new_layers == [1, 3]
    assert GrowthReceipt.from_dict(receipt.to_dict()) == receipt
    assert GrowthReceipt.from_dict(receipt.config_entry()).layers == content["layers"]
    assert "from `./base`, 20,416 to 35,424 parameters" in receipt.summary()
    shrunk = ShrinkReceipt.from_dict(json.loads((OLD / "shrink_receipt.json").read_text()))
    assert shrunk.source == "./base" and shrunk.how == "importance" and len(shrunk.block_influence) == 2
    assert ShrinkReceipt.from_dict(shrunk.to_dict()) == shrunk


@pytest.mark.parametrize("kind, file", [(GrowthReceipt, "growth_receipt"), (ShrinkReceipt, "shrink_receipt")])
def test_newer_or_broken_receipts_are_refused_in_one_sentence(kind: Any, file: str) -> None:
    content = json.loads((OLD / f"{file}.json").read_text())
    with pytest.raises(ValueError, match=r"has the format version 9, .*; update hf_warmscale\.$"):
        kind.from_dict({**content, "format_version": 9})
    del content["layers"]
    with pytest.raises(ValueError, match=r"receipt lacks the field 'layers'; resize the model again\.$"):
        kind.from_dict(content)


def test_an_earlier_growth_of_version_0_1_0_keeps_no_path(source: PreTrainedModel) -> None:
    once = grow_from_pretrained(source, num_hidden_layers=3, depth="identity", verify=False)
    once.config.growth = {**once.config.growth, "source": "/home/me/base", "obstacle": "x", "format_version": 1}
    twice = grow_from_pretrained(once, hidden_size=64, verify=False)
    assert "/home" not in json.dumps(twice.config.to_dict())
    assert twice.config.growth["earlier"]["source"] == "./base"
