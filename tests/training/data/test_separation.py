"""Packed documents do not see one another, in any family, attention and layout that training uses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    default_data_collator,
)
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from hf_warmscale.architecture import Axis
from hf_warmscale.architecture.tiny import tiny_config
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.training import ContinualTrainer, ReplayMixture, Stage
from hf_warmscale.training.data.collators import RowCollator, collate_packed
from hf_warmscale.training.data.separation import Separation, separation_of, tiny_sizes
from tests.conftest import perturb
from tests.training.tiny import arguments, losses, tiny_model

SAFE = ("llama", "qwen3", "gemma3_text", "gpt_neox", "mixtral")
LEAKING = ("bloom", "mpt", "mamba", "opt", "biogpt", "gpt_oss")
LAYOUTS = {"eager": "rows", "sdpa": "rows", "flex_attention": "rows", "flash_attention_2": "end_to_end"}

FLASH = Separation("llama", "flash_attention_2", {"rows": 1.0, "end_to_end": 1e-16})
NEITHER = Separation("bloom", "eager", {"rows": 0.5, "end_to_end": 0.6})

Row = dict[str, torch.Tensor]


def small_model(model_type: str, attention: str = "eager") -> PreTrainedModel:
    """Return a perturbed model of two layers."""
    config = CONFIG_MAPPING[model_type]()
    config = tiny_config(config, {**tiny_sizes(config), Axis.LAYERS: 2})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    perturb(model)
    return model


def packed_row(*lengths: int) -> Row:
    """Return a row of documents of these lengths."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.randint(4, 60, positions.shape)
    return {"input_ids": tokens, "position_ids": positions, "labels": tokens.masked_fill(positions == 0, -100)}


# ---- The proof ----


@pytest.mark.parametrize("attention", LAYOUTS)
@pytest.mark.parametrize("family", SAFE)
def test_documents_stay_apart_in_common_families(family: str, attention: str) -> None:
    model = small_model(family)
    model.config._attn_implementation = attention  # the model itself, which could not run here, is not run
    proved = separation_of(model)
    assert proved is not None
    assert proved.failures == {} and proved.layout == LAYOUTS[attention]
    assert all(proved.changes[layout] < 1e-12 for layout in proved.changes if proved.holds_for(layout))
    # Flash attention finds no documents in a batch of several rows: the proof must see that.
    assert (proved.changes["rows"] > 0.1) is (attention == "flash_attention_2")


@pytest.mark.parametrize("family", LEAKING)
def test_a_leak_is_found_and_refused_by_name(family: str) -> None:
    model = small_model(family)
    proved = separation_of(model)
    assert proved is not None and proved.layout is None
    assert proved.changes and min(proved.changes.values()) > 1e-3
    row = packed_row(7, 9)
    with pytest.raises(ValueError, match=f"^{family} models with eager attention cannot train on rows that hold"):
        collate_packed([row, row], proved)


def test_mup_models_and_adapters_are_proved_too() -> None:
    config = MupConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        mup={"base_hidden_size": 16},
    )
    mup = separation_of(MupForCausalLM(config))
    adapted = separation_of(
        get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    )
    assert mup is not None and mup.layout == "rows"
    assert adapted is not None and (adapted.family, adapted.layout) == ("llama", "rows")
    assert separation_of(torch.nn.Linear(2, 2)) is None


def test_what_cannot_be_proved_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Particular(LlamaForCausalLM):
        def __init__(self, config: LlamaConfig) -> None:
            if config.hidden_size != 16:
                raise TypeError("I am what I am")
            super().__init__(config)

    model = Particular(tiny_model().config)
    reason = r"cannot train .* could not be proved on a tiny model \(TypeError: I am what I am\); pack one document"
    with pytest.raises(ValueError, match=reason):
        ContinualTrainer(model, arguments(tmp_path), stage=stage_on([packed_row(7, 9)] * 8))
    single = ContinualTrainer(model, arguments(tmp_path), stage=stage_on([packed_row(9)] * 8))
    single.train()
    assert len(losses(single)) == 2


def test_a_composite_model_is_proved_as_it_is() -> None:
    """Its text model is shrunk inside of it, since the whole decides on the mask."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gemma3"](), attn_implementation="eager")
    proved = separation_of(model)
    assert proved is not None and proved.unproved is None and proved.layout == "rows"


# ---- The layouts ----


@pytest.mark.parametrize("lengths", [((7, 9), (10, 6)), ((16,), (16,)), ((5, 1, 1), (9,))])
def test_flash_attention_gets_one_row_with_the_segments_of_the_documents(lengths: tuple[tuple[int, ...], ...]) -> None:
    batch = collate_packed([packed_row(*row) for row in lengths], FLASH)
    assert batch["input_ids"].shape == (1, sum(map(sum, lengths)))
    (segments, _), (longest, _) = prepare_fa_kwargs_from_position_ids(batch["position_ids"])
    documents = [length for row in lengths for length in row]
    assert torch.diff(segments).tolist() == documents and longest == max(documents)


def test_rows_of_one_document_are_padded_where_no_layout_is_safe() -> None:
    """A causal model never sees padding on the right, so each document has the loss that it has alone."""
    model = small_model("bloom").eval()
    rows = [packed_row(length) for length in (5, 9, 3)]
    batch = collate_packed(rows, NEITHER)
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    with torch.no_grad():
        together = model(**batch, use_cache=False).loss * sum(len(row["labels"]) - 1 for row in rows)
        alone = sum(
            model(input_ids=row["input_ids"][None], labels=row["labels"][None], use_cache=False).loss
            * (len(row["labels"]) - 1)
            for row in rows
        )
    assert together.item() == pytest.approx(float(alone), rel=1e-5)


def test_packed_and_unpacked_rows_in_one_batch_keep_their_losses() -> None:
    model = tiny_model(dropout=0.0).eval()
    packed, plain = packed_row(7, 9), {"input_ids": list(range(4, 16)), "labels": list(range(4, 16))}
    padded = {name: [*values, 0, 0] for name, values in plain.items()} | {"attention_mask": [1] * 12 + [0, 0]}
    alone = {name: torch.tensor(values)[None] for name, values in plain.items()}
    with torch.no_grad():
        expected = model(**collate_packed([packed]), use_cache=False).loss * 14 + model(**alone).loss * 11
        for row in (plain, padded):
            batch = RowCollator(default_data_collator)([packed, row])
            assert batch["input_ids"].shape == (1, 28)
            assert (model(**batch, use_cache=False).loss * 25).item() == pytest.approx(float(expected), rel=1e-5)


# ---- In a stage ----


def stage_on(rows: list[Row]) -> Stage:
    return Stage("packed", "constant", ReplayMixture({"new": rows, "old": rows}, [0.75, 0.25]), max_steps=2)


@pytest.mark.parametrize("family", ["bloom", "mamba", "opt"])
def test_a_stage_refuses_packed_rows_before_it_starts_and_trains_single_documents(family: str, tmp_path: Path) -> None:
    model = small_model(family)
    with pytest.raises(ValueError, match=f"{family} models .* --padding-free"):
        ContinualTrainer(model, arguments(tmp_path / "a"), stage=stage_on([packed_row(7, 9)] * 8))
    assert not (tmp_path / "a").exists()
    rows = [packed_row(length) for length in (5, 9, 3, 16, 8, 2, 7, 11)]
    trainer = ContinualTrainer(model, arguments(tmp_path / "b"), stage=stage_on(rows), eval_dataset=rows)
    trainer.train()
    assert len(losses(trainer)) == 2 and trainer.stage_run is not None
    mixture, progress = trainer.stage_run.mixture, trainer.stage_run.record.progress
    drawn = mixture.__getitems__(range(8))
    assert progress.tokens == {
        name: sum(len(row["input_ids"]) for row in drawn if row["source"] == name) for name in mixture.names
    }


def test_a_collator_that_mixes_documents_is_refused_whatever_it_adds(tmp_path: Path) -> None:
    def stacked(rows: list[Any]) -> Any:
        return {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "position_ids", "labels")}

    rows = [packed_row(7, 9)] * 8
    trainer = ContinualTrainer(small_model("opt"), arguments(tmp_path / "opt"), stacked, stage=stage_on(rows))
    with pytest.raises(ValueError, match="opt models with eager attention cannot train"):
        trainer.train()
    ContinualTrainer(small_model("llama"), arguments(tmp_path / "llama"), stacked, stage=stage_on(rows)).train()
