"""Shrinking undoes growing, and otherwise keeps what matters: shrink(grow(m)) == m."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from hf_warmscale.architecture import describe
from hf_warmscale.resize import grow_from_pretrained, shrink_checkpoint, shrink_from_pretrained
from hf_warmscale.resize.shrinking.selection import most_important, select_heads
from tests.resize.families import FAMILIES, random_model, tokens

WIDER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8}
GROWTHS: Mapping[str, Mapping[str, Any]] = {
    "zero_pad": {"hidden_size": 48, "intermediate_size": 56, "width": "zero_pad"},
    "identity": {"num_hidden_layers": 5, "depth": "identity"},
    "both": {"hidden_size": 64, "num_hidden_layers": 3, "depth": "identity", "width": "zero_pad"},
}


def ulps(one: PreTrainedModel, other: PreTrainedModel, *, offset: bool = False) -> float:
    """The largest difference of a weight in units in the last place; of norms that store `g - 1`, of 1 at least."""
    before, after = one.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    worst = 0.0
    for name, weight in before.items():
        size = weight.abs().clamp(min=1) if offset and "norm" in name else weight.abs()
        unit = torch.nextafter(size, torch.full_like(size, torch.inf)).double() - size.double()
        worst = max(worst, float(((weight.double() - after[name].double()).abs() / unit).max()))
    return worst


WAYS = [(family, True, dtype) for family in ("llama", "gemma2") for dtype in (torch.float64, torch.bfloat16)]
WAYS += [(family, False, torch.float32) for family in ("gemma2", "olmo2", "opt", "mixtral")]
WAYS += [("olmo2", False, torch.float64)]


@pytest.mark.parametrize("family, undo_growth, dtype", WAYS)
def test_exact_growth_is_undone(family: str, undo_growth: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """By the receipt, and by the importance of what does nothing."""
    source = reloaded(FAMILIES[family](True), tmp_path, dtype)
    for name, growth in GROWTHS.items():
        grown = grow_from_pretrained(source, **growth, verify=False)
        old = {str(axis): size for axis, size in describe(source.config).sizes.items()}
        sizes: dict[str, Any] = {axis: old[axis] for axis in growth if axis not in ("width", "depth")}
        small = shrink_from_pretrained(grown, **sizes, undo_growth=undo_growth, verify=False)
        assert type(small) is type(source)
        # The inverse of a factor is a rounded number too, which float64 has no digits left to hide.
        by_inverse = dtype == torch.float64 and not undo_growth
        worst = ulps(source, small, offset=family == "gemma2")
        assert worst <= (0 if name == "identity" else 2 if by_inverse else 1), name


def test_a_live_source_keeps_the_mode_of_each_module() -> None:
    """A frozen part may be in evaluation mode while the rest trains; measuring a model must not wake its dropout."""
    model = random_model(FAMILIES["llama"](True), torch.float32).train()
    model.get_input_embeddings().eval()
    before = [module.training for module in model.modules()]
    shrink_from_pretrained(model, intermediate_size=16, calibration=tokens()[:1], verify=True)
    grow_from_pretrained(model, num_hidden_layers=3, depth="identity", verify=True)
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2


def reloaded(config: PreTrainedConfig, folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random model as it comes from a file: Gemma's embedding factor is rounded otherwise in a cast model."""
    random_model(config, dtype).save_pretrained(folder)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager")
    return model


COPIES: Mapping[str, Mapping[str, Any]] = {
    "clone": {"hidden_size": 64},
    "three-fold": {"hidden_size": 96},
    "net2net": {"num_attention_heads": 8, "width": "net2net"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_copies_are_undone_by_the_receipt(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A plain gather would leave every divided weight at 1/n."""
    source = reloaded(FAMILIES[family](True), tmp_path, dtype)
    for name, growth in COPIES.items():
        grown = grow_from_pretrained(source, **growth, snr_db=None, verify=False)
        small = shrink_from_pretrained(grown, verify=False)
        exact = name == "clone" and family == "llama"
        assert ulps(source, small, offset=family == "gemma2") <= (0 if exact else 1), name
        assert "growth" not in small.config.to_dict()
        assert small.shrink_receipt["how"] == "receipt"  # type: ignore[index]


def test_paired_noise_is_undone_to_an_ulp_of_the_noise(tmp_path: Path) -> None:
    source = reloaded(FAMILIES["llama"](True), tmp_path)
    small = shrink_from_pretrained(grow_from_pretrained(source, hidden_size=64, verify=False), verify=False)
    for name, weight in source.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], weight, rtol=2.3e-16, atol=1e-15)


def test_growths_are_undone_in_turn(tmp_path: Path) -> None:
    source = reloaded(FAMILIES["llama"](True), tmp_path / "source")
    wide = grow_from_pretrained(source, hidden_size=64, snr_db=None, verify=False)
    grow_from_pretrained(wide, num_hidden_layers=3, depth="identity", verify=False).save_pretrained(tmp_path / "grown")
    once = shrink_from_pretrained(tmp_path / "grown", verify=False)
    assert ulps(wide, once) == 0
    once.save_pretrained(tmp_path / "once")
    twice = shrink_from_pretrained(tmp_path / "once", verify=False)
    assert ulps(source, twice) == 0
    assert "growth" not in twice.config.to_dict()


def test_what_cannot_be_undone_is_not_cut_without_a_word() -> None:
    source = random_model(FAMILIES["llama"](True))
    padded = grow_from_pretrained(source, hidden_size=64, width="szp", verify=False)
    with pytest.raises(ValueError, match="grown by szp, which cannot be undone; name at least one size that shrinks"):
        shrink_from_pretrained(padded)
    wide = grow_from_pretrained(source, hidden_size=64, verify=False)
    with pytest.raises(ValueError, match="has another num_hidden_layers than its growth gave it"):
        wide.config.num_hidden_layers = 1
        del wide.model.layers[1]
        shrink_from_pretrained(wide)
    twice = grow_from_pretrained(
        grow_from_pretrained(source, hidden_size=64, verify=False), intermediate_size=96, verify=False
    )
    old = {"hidden_size": 32, "intermediate_size": source.config.intermediate_size}
    with pytest.raises(ValueError, match="undo the last growth first"):
        shrink_from_pretrained(twice, **old)
    assert shrink_from_pretrained(twice, **old, undo_growth=False).config.hidden_size == 32


def test_a_receipt_is_no_use_at_other_sizes() -> None:
    source = random_model(FAMILIES["llama"](True))
    grown = grow_from_pretrained(source, hidden_size=64, verify=False)
    small = shrink_from_pretrained(grown, hidden_size=48, calibration=tokens())
    assert small.shrink_receipt["how"] == "importance"  # type: ignore[index]
    assert small.config.hidden_size == 48


def test_what_does_nothing_goes_first() -> None:
    """Zero half the neurons of each block, other ones in each, and a key-value head: the logits do not move."""
    source = random_model(FAMILIES["llama"](True))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, block in enumerate(source.model.layers):
            unread = torch.randperm(48, generator=random)[:24]
            block.mlp.down_proj.weight[:, unread] = 0
            head = layer % 2  # two query heads of 8 read it
            block.self_attn.o_proj.weight[:, 16 * head : 16 * (head + 1)] = 0
    small = shrink_from_pretrained(
        source, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, calibration=tokens(), verify=False
    )
    with torch.no_grad():
        torch.testing.assert_close(small(tokens()).logits, source(tokens()).logits, rtol=0, atol=1e-12)


def test_blocks_that_write_nothing_are_dropped_exactly() -> None:
    source = random_model(FAMILIES["llama"](True))
    source = grow_from_pretrained(source, num_hidden_layers=4, snr_db=None, verify=False)
    with torch.no_grad():
        for number in (0, 3):
            block = source.model.layers[number]
            for module in (block.self_attn.o_proj, block.mlp.down_proj):
                module.weight.zero_()
                module.bias.zero_()
    small = shrink_from_pretrained(source, num_hidden_layers=2, calibration=tokens(), undo_growth=False, verify=False)
    receipt: Any = small.shrink_receipt
    assert receipt["layers"] == [1, 2] and [receipt["block_influence"][number] for number in (0, 3)] == [0.0, 0.0]
    with torch.no_grad():
        assert torch.equal(small(tokens()).logits, source(tokens()).logits)


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
    query, keys = select_heads(scores, 2, (3, 2))
    assert keys.tolist() == [0, 2] and query.tolist() == [1, 5]
    with pytest.raises(ValueError, match="choose more key-value heads"):
        select_heads(scores, 4, (3, 1))


REFUSALS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "larger": ({"hidden_size": 64}, "grow_from_pretrained"),
    "nothing": ({}, "at least one that shrinks"),
    "uneven heads": ({"num_attention_heads": 3}, "shared evenly"),
    "unknown": ({"num_experts": 2}, "has no num_experts"),
    "no text": ({"hidden_size": 16, "calibration": []}, "no text"),
    "one row": ({"hidden_size": 16, "calibration": torch.arange(8)}, r"shape \(8,\)"),
    "no tokens": ({"hidden_size": 16, "calibration": torch.zeros(0, 8, dtype=torch.long)}, "give integer token ids"),
    "foreign ids": ({"hidden_size": 16, "calibration": torch.tensor([[5, 1000]])}, "has the token 1000"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str) -> None:
    arguments, words = REFUSALS[case]
    source = random_model(FAMILIES["llama"](True))
    with pytest.raises(ValueError, match=words):
        shrink_from_pretrained(source, **arguments)


def test_heads_with_a_bias_of_their_own_stay() -> None:
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=4, vocab_size=64)
    with pytest.raises(ValueError, match="cannot be shrunk to these sizes: num_attention_heads changes, but"):
        shrink_from_pretrained(random_model(config), num_attention_heads=2)


def test_only_padding_of_the_vocabulary_is_cut(tmp_path: Path) -> None:
    source = random_model(FAMILIES["llama"](True), dtype=torch.float32)
    assert shrink_from_pretrained(source, vocab_size=60, verify=False).config.vocab_size == 60
    source.generation_config.eos_token_id = [1, 62]
    with pytest.raises(ValueError, match=r"vocab_size 60 would cut eos_token_id 62; choose at least 63\.$"):
        shrink_from_pretrained(source, vocab_size=60)
    source.generation_config.eos_token_id = 1
    source.save_pretrained(tmp_path / "source")
    words = Tokenizer(models.BPE(vocab={chr(97 + number): number for number in range(62)}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"tokens that the tokenizer gives; choose at least 62\.$"):
        shrink_checkpoint(tmp_path / "source", tmp_path / "out", vocab_size=60)
    assert not (tmp_path / "out").exists()
    assert shrink_checkpoint(tmp_path / "source", tmp_path / "out", vocab_size=62).sizes["vocab_size"] == 62
