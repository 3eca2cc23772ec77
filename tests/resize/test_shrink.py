"""Shrinking undoes growing, and otherwise keeps what matters: shrink(grow(m)) == m."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_warmscale.architecture import describe
from hf_warmscale.resize import grow_from_pretrained, shrink_from_pretrained
from hf_warmscale.resize.kept import kept_heads, most_important
from tests.resize.families import FAMILIES, random_model, tokens

WIDER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8}
GROWTHS: Mapping[str, Mapping[str, Any]] = {
    "zero_pad": {"hidden_size": 48, "intermediate_size": 56, "width": "zero_pad"},
    "identity": {"num_hidden_layers": 5, "depth": "identity"},
    "both": {"hidden_size": 64, "num_hidden_layers": 3, "depth": "identity", "width": "zero_pad"},
}
ONE_ULP = 2.3e-16


def difference(one: PreTrainedModel, other: PreTrainedModel, *, offset: bool) -> float:
    """The largest relative difference of a weight, of norms with an offset in units of 1; both have the same ones."""
    before, after = one.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    return max(
        float(
            ((before[name] - after[name]).abs() / (before[name].abs() + (offset and "norm" in name)))
            .nan_to_num()
            .max()
        )
        for name in before
    )


WAYS = [(family, True) for family in ("llama", "gemma2")]
WAYS += [(family, False) for family in ("gemma2", "olmo2", "opt", "mixtral")]


@pytest.mark.parametrize("family, undo_growth", WAYS)
def test_exact_growth_is_undone(family: str, undo_growth: bool, tmp_path: Path) -> None:
    """By the receipt, and by the importance of what does nothing."""
    source = reloaded(FAMILIES[family](True), tmp_path)
    for name, growth in GROWTHS.items():
        grown = grow_from_pretrained(source, **growth, verify=False)
        old = {str(axis): size for axis, size in describe(source.config).sizes.items()}
        sizes: dict[str, Any] = {axis: old[axis] for axis in growth if axis not in ("width", "depth")}
        small = shrink_from_pretrained(grown, **sizes, undo_growth=undo_growth, verify=False)
        assert type(small) is type(source)
        # Gemma rescales 1 + g and stores g, so that the ulps of both count.
        worst = difference(source, small, offset=family == "gemma2")
        assert worst == 0 if name == "identity" else worst <= (4 if family == "gemma2" else 2) * ONE_ULP, name


def reloaded(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """A random model as it comes from a file: Gemma's embedding factor is rounded otherwise in a cast model."""
    random_model(config).save_pretrained(folder)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager"
    )
    return model


@pytest.mark.parametrize(
    "family, width, snr_db",
    [("llama", "clone", None), ("llama", "clone", 10.0), ("llama", "net2net", None), ("gemma2", "clone", None)],
)
def test_copies_are_undone_by_the_receipt(family: str, width: str, snr_db: float | None, tmp_path: Path) -> None:
    """A plain gather would leave every divided weight at 1/n; noise costs an ulp of the noise, not of the weight."""
    source = reloaded(FAMILIES[family](True), tmp_path)
    sizes = {"hidden_size": 64} if width == "clone" else {"num_attention_heads": 8}
    grown = grow_from_pretrained(source, **sizes, width=width, snr_db=snr_db, verify=False)  # type: ignore[arg-type]
    small = shrink_from_pretrained(grown, verify=False)
    for name, weight in source.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], weight, rtol=2 * ONE_ULP, atol=2e-15 if snr_db else 1e-15)
    assert "growth" not in small.config.to_dict()
    assert small.shrink_receipt["how"] == "receipt"  # type: ignore[index]


def test_a_receipt_is_no_use_at_other_sizes() -> None:
    source = random_model(FAMILIES["llama"](True))
    grown = grow_from_pretrained(source, hidden_size=64, verify=False)
    small = shrink_from_pretrained(grown, hidden_size=48, calibration=tokens())
    assert small.shrink_receipt["how"] == "importance"  # type: ignore[index]
    assert small.config.hidden_size == 48


def test_what_does_nothing_goes_first() -> None:
    """Silence half the neurons of each block, other ones in each, and a key-value head: the logits do not move."""
    source = random_model(FAMILIES["llama"](True))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, block in enumerate(source.model.layers):
            silent = torch.randperm(48, generator=random)[:24]
            block.mlp.down_proj.weight[:, silent] = 0
            head = layer % 2  # two query heads of 8 read it
            block.self_attn.o_proj.weight[:, 16 * head : 16 * (head + 1)] = 0
    small = shrink_from_pretrained(
        source, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, calibration=tokens(), verify=False
    )
    with torch.no_grad():
        torch.testing.assert_close(small(tokens()).logits, source(tokens()).logits, rtol=0, atol=1e-12)


def test_blocks_go_by_their_influence() -> None:
    source = random_model(FAMILIES["llama"](True))
    source = grow_from_pretrained(source, num_hidden_layers=4, snr_db=None, verify=False)
    with torch.no_grad():
        for number in (0, 2):
            block = source.model.layers[number]
            for module in (block.self_attn.o_proj, block.mlp.down_proj):
                module.weight.mul_(1e-3)
                module.bias.mul_(1e-3)
    small = shrink_from_pretrained(source, num_hidden_layers=2, calibration=tokens(), undo_growth=False)
    receipt: Any = small.shrink_receipt
    assert receipt["layers"] == [1, 3]
    assert max(receipt["block_influence"][0::2]) < min(receipt["block_influence"][1::2])


def test_most_important() -> None:
    assert most_important(torch.tensor([0.0, 3.0, 1.0, 3.0, 3.0]), 3).tolist() == [1, 3, 4]


def test_every_query_head_keeps_its_keys() -> None:
    scores = torch.tensor([1.0, 9.0, 2.0, 2.0, 0.0, 8.0])  # three groups of two
    query, keys = kept_heads(scores, 2, (3, 2))
    assert keys.tolist() == [0, 2] and query.tolist() == [1, 5]
    with pytest.raises(ValueError, match="keep more key-value heads"):
        kept_heads(scores, 4, (3, 1))


REFUSALS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "larger": ({"hidden_size": 64}, "grow_from_pretrained"),
    "nothing": ({}, "at least one that shrinks"),
    "uneven heads": ({"num_attention_heads": 3}, "shared evenly"),
    "unknown": ({"num_experts": 2}, "has no num_experts"),
    "no text": ({"hidden_size": 16, "calibration": []}, "no text"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str) -> None:
    arguments, words = REFUSALS[case]
    source = random_model(FAMILIES["llama"](True))
    with pytest.raises(ValueError, match=words):
        shrink_from_pretrained(source, **arguments)
