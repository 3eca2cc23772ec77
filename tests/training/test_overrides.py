"""A trainer mixed with stages may override what a trainer may override, and batches hold what the model asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_warmscale.training import ContinualMixin, ContinualTrainer, ReplayMixture, Stage
from tests.training.tiny import DOMAINS, LENGTH, NEW, OLD, arguments, losses, replay, tiny_model, weights

STEPS = 3


def stage(**settings: Any) -> Stage:
    return Stage("first", "constant", **{"mixture": replay(0.3), "max_steps": STEPS, **settings})


class Narrow(Trainer):
    """Overrides with the narrowest signatures that `Trainer` itself calls."""

    def create_optimizer(self) -> Any:  # type: ignore[override]
        self.called = "create_optimizer"
        return super().create_optimizer()

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        assert set(inputs) <= {"input_ids", "labels"}, inputs.keys()
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate(self, max_length: int | None = None, **kwargs: Any) -> dict[str, float]:  # type: ignore[override]
        self.max_length = max_length
        return super().evaluate(**kwargs)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        super().log(logs, *args)

    def get_train_dataloader(self) -> Any:
        return super().get_train_dataloader()


class NarrowStages(ContinualMixin, Narrow):
    """The mixin above them."""


class StagesNarrow(Narrow, ContinualTrainer):
    """The mixin below them."""


@pytest.mark.parametrize("kind", [NarrowStages, StagesNarrow])
@pytest.mark.parametrize("with_stage", [True, False])
def test_legal_overrides_work(kind: Any, with_stage: bool, tmp_path: Path) -> None:
    settings = {} if with_stage else {"max_steps": STEPS}
    trainer = kind(
        tiny_model(), arguments(tmp_path, save_strategy="no", **settings), train_dataset=NEW,
        eval_dataset=DOMAINS["new"], **({"stage": stage()} if with_stage else {}),
    )  # fmt: skip
    trainer.train()
    assert trainer.called == "create_optimizer"
    assert "eval_loss" in trainer.evaluate(max_length=7)
    assert trainer.max_length == 7
    if with_stage:
        assert any("loss/old" in entry for entry in trainer.state.log_history)


class Sourced(LlamaForCausalLM):
    """A model with an input that is called `source`."""

    def forward(self, input_ids: Any = None, labels: Any = None, source: Any = None, **kwargs: Any) -> Any:
        assert source is not None and source.shape == (4,) and bool((source == 5).all())
        return super().forward(input_ids=input_ids, labels=labels, **kwargs)


def test_a_column_called_source_is_the_users(tmp_path: Path) -> None:
    mixture = ReplayMixture(
        {name: [{**row, "source": 5} for row in rows] for name, rows in (("new", NEW), ("old", OLD))}, [0.7, 0.3]
    )
    model = Sourced(tiny_model().config)
    trainer = ContinualTrainer(model, arguments(tmp_path, save_strategy="no"), stage=stage(mixture=mixture))
    trainer.train()
    assert trainer.state.global_step == STEPS


def embedded(rows: list[Any]) -> dict[str, Tensor]:
    return {
        "inputs_embeds": torch.ones(len(rows), LENGTH, 16),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def test_a_collator_without_input_ids(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="no")
    trainer = ContinualTrainer(tiny_model(), args, embedded, stage=stage())
    trainer.train()
    assert trainer.stage_run is not None
    assert trainer.stage_run.record.progress.num_tokens() == STEPS * 4 * LENGTH


class Labelless(LlamaForCausalLM):
    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        return CausalLMOutputWithPast(loss=super().forward(input_ids=input_ids).logits.square().mean())


def test_a_collator_without_labels(tmp_path: Path) -> None:
    def collate(rows: list[Any]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    model = Labelless(tiny_model().config)
    trainer = ContinualTrainer(model, arguments(tmp_path, save_strategy="no"), collate, stage=stage())
    trainer.train()
    assert trainer.stage_run is not None
    progress = trainer.stage_run.record.progress
    assert (progress.num_tokens(), sum(progress.loss_tokens.values())) == (STEPS * 4 * LENGTH, 0)


def test_a_domain_without_a_loss_is_left_out_of_the_mean(tmp_path: Path) -> None:
    class Partly(ContinualTrainer):
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            output = super().evaluation_loop(*args, **kwargs)
            if kwargs["metric_key_prefix"] == "eval_old" and output.metrics is not None:
                del output.metrics["eval_old_loss"]
            return output

    args = arguments(tmp_path, save_strategy="no", eval_strategy="steps", eval_steps=STEPS)
    trainer = Partly(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS)
    trainer.train()
    last = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert last["eval_loss"] == last["eval_new_loss"]
    assert "eval_old_loss" not in last


@pytest.mark.parametrize("made", [{"model": tiny_model()}, {"model_init": lambda: tiny_model()}])
def test_the_model_is_saved_as_it_came(made: dict[str, Any], tmp_path: Path) -> None:
    trainer = ContinualTrainer(args=arguments(tmp_path / "run"), stage=stage(), **made)
    if "model" in made:
        trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert '"use_cache": true' in (tmp_path / "final" / "config.json").read_text()


def test_a_generation_config_that_cannot_be_saved_does_not_end_the_run(tmp_path: Path) -> None:
    model = tiny_model()
    assert model.generation_config is not None
    model.generation_config.update(do_sample=False, temperature=0.9)
    ContinualTrainer(model, arguments(tmp_path / "run"), stage=stage()).save_model(str(tmp_path / "saved"))
    assert "temperature" not in (tmp_path / "saved" / "generation_config.json").read_text()


@pytest.mark.parametrize("prefix", ["eval", "test"])
def test_an_evaluation_by_hand_has_its_prefix(prefix: str, tmp_path: Path) -> None:
    trainer = ContinualTrainer(tiny_model(), arguments(tmp_path, save_strategy="no"), stage=stage())
    trainer.train()
    found = trainer.evaluate(DOMAINS, metric_key_prefix=prefix)
    assert found[f"{prefix}_loss"] == pytest.approx((found[f"{prefix}_new_loss"] + found[f"{prefix}_old_loss"]) / 2)


class NoFloat64(TorchDispatchMode):
    """A device that has no float64, as Apple's GPUs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and each.dtype == torch.float64:
                raise AssertionError(f"{func} makes a float64 tensor")
        return result


@pytest.mark.parametrize("settings", [{}, {"label_smoothing_factor": 0.1}, {"gradient_accumulation_steps": 2}])
def test_no_step_evaluation_or_log_makes_a_float64_tensor(settings: dict[str, Any], tmp_path: Path) -> None:
    args = arguments(tmp_path, save_steps=STEPS, eval_strategy="steps", eval_steps=STEPS, **settings)
    trainer = ContinualTrainer(tiny_model(), args, stage=stage(), eval_dataset=DOMAINS)
    with NoFloat64():  # type: ignore[no-untyped-call]
        trainer.train()
    assert any("loss/new" in entry for entry in trainer.state.log_history)


def test_a_plain_subclass_keeps_its_arguments(tmp_path: Path) -> None:
    """`ContinualMixin` copies the arguments: those of the caller stay as they were given."""
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", save_strategy="no")
    trainer = ContinualTrainer(tiny_model(), args, stage=stage())
    trainer.train()
    assert (args.max_steps, args.train_sampling_strategy) == (-1, "random")
    assert len(losses(trainer)) == 0 and len(weights(trainer))
