"""Streamed or in memory: the same bits, whatever the shards and the threads; another seed, other noise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_warmscale.resize import grow_checkpoint, grow_from_pretrained
from hf_warmscale.resize.growing.replay import replay_stored
from tests.resize.families import FAMILIES, random_model

GROWTHS: dict[str, dict[str, Any]] = {
    "clone": {"hidden_size": 64, "vocab_size": 80},
    "zero_pad": {"intermediate_size": 56, "width": "zero_pad", "num_hidden_layers": 3, "depth": "identity"},
    "szp": {"hidden_size": 64, "width": "szp"},
    "net2net": {"intermediate_size": 60, "width": "net2net", "num_hidden_layers": 4, "depth": "interleave"},
}


def bits(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_streamed_and_in_memory_are_the_same_bits(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    random_model(FAMILIES[family](True), dtype=dtype).save_pretrained(tmp_path / "source", max_shard_size="20KB")
    for name, growth in GROWTHS.items():
        if family == "gpt2":
            growth = {"n_inner" if axis == "intermediate_size" else axis: size for axis, size in growth.items()}
        if family == "mixtral" and name == "szp":
            continue
        grown = grow_from_pretrained(tmp_path / "source", **growth, seed=5, verify=False)
        grow_checkpoint(tmp_path / "source", tmp_path / name, **growth, seed=5, max_shard_size="30KB")
        stored, live = bits(tmp_path / name), grown.state_dict()
        assert stored.keys() == live.keys()
        assert all(torch.equal(stored[key], live[key]) for key in live), name
        assert grown.dtype == dtype


def test_a_seed_is_all_the_chance_there_is(tmp_path: Path) -> None:
    random_model(FAMILIES["llama"](True), dtype=torch.float32).save_pretrained(tmp_path / "source")
    threads = torch.get_num_threads()
    for name, seed, count in (("one", 1, 1), ("again", 1, 2), ("two", 2, 1)):
        torch.set_num_threads(count)
        torch.manual_seed(count)
        grow_checkpoint(tmp_path / "source", tmp_path / name, hidden_size=64, seed=seed)
    torch.set_num_threads(threads)
    one, again, two = (bits(tmp_path / name) for name in ("one", "again", "two"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["model.layers.0.mlp.up_proj.weight"], two["model.layers.0.mlp.up_proj.weight"])


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "smaller": ({"hidden_size": 16}, "shrink_from_pretrained"),
    "uneven heads": ({"num_attention_heads": 5}, "shared evenly"),
    "unknown axis": ({"moe_intermediate_size": 8}, "has no moe_intermediate_size"),
    "head size": ({"head_dim": 16}, "rotary"),
    "no multiple": ({"hidden_size": 48}, "zero_pad"),
    "nothing": ({}, "at least one"),
    "fractional": ({"hidden_size": 64.0}, "whole number"),
    "operator": ({"hidden_size": 64, "width": "copy"}, "unknown"),
    "experts": ({"num_experts": 4}, "cannot become a mixtral model"),
    "places without blocks": (
        {"hidden_size": 64, "depth": "identity", "insert_after": [0]},
        "adds 0, but insert_after names 1 places",
    ),
    "depth operator": ({"hidden_size": 64, "depth": "double"}, "depth operator 'double' is unknown"),
    "no decibels": ({"hidden_size": 64, "snr_db": float("nan")}, "snr_db is nan"),
    "no factor": ({"hidden_size": 64, "width": "szp", "shrink": float("nan")}, "shrink is nan"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_and_nothing_written(case: str, tmp_path: Path) -> None:
    request, words = REFUSALS[case]
    random_model(FAMILIES["llama"](True), dtype=torch.float32).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=words):
        grow_checkpoint(tmp_path / "source", tmp_path / "out", **request)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_factor_of_gemmas_embedding_is_the_sources(tmp_path: Path) -> None:
    """In bfloat16 sqrt(32) is held as 5.65625, whatever the dtype of the target, and so it is in a replay."""
    source = random_model(FAMILIES["gemma2"](True), dtype=torch.bfloat16)
    source.save_pretrained(tmp_path / "source")
    wide: dict[str, Any] = {"hidden_size": 96, "dtype": torch.float32}
    grow_checkpoint(tmp_path / "source", tmp_path / "grown", **wide)
    live = grow_from_pretrained(tmp_path / "source", **wide, verify=False).state_dict()
    stored = bits(tmp_path / "grown")
    assert all(torch.equal(stored[key], live[key]) for key in stored)
    name = "model.embed_tokens.weight"
    scale = replay_stored(tmp_path / "source", tmp_path / "grown").transfers[name].scale
    expected = source.get_parameter(name).float() * scale
    torch.testing.assert_close(stored[name][:, :32], expected, rtol=1e-6, atol=0)


def test_a_nan_is_refused(tmp_path: Path) -> None:
    model = random_model(FAMILIES["llama"](True), dtype=torch.float32)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[3, 3] = torch.nan
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"embed_tokens\.weight holds NaN"):
        grow_checkpoint(tmp_path / "source", tmp_path / "out", hidden_size=64)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight holds NaN"):
        grow_from_pretrained(model, hidden_size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
