"""Pruning while training: the asked share of zeros exactly, and the same run after a kill."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, TrainerCallback

from hf_warmscale import ContinualTrainer, MagnitudePruningCallback, Stage
from hf_warmscale.architecture import describe
from tests.training.tiny import arguments, replay, tiny_model, weights

STEPS = 6
SCHEDULE, EVERY = (0.15, 0.37), 2
Pruning = MagnitudePruningCallback


def trainer(output: Path, pruning: TrainerCallback | None, model: Any = None, **settings: Any) -> ContinualTrainer:
    args = arguments(output, **{"save_steps": 1, **settings})
    stage = Stage("prune", "constant", replay(0.3), max_steps=STEPS)
    return ContinualTrainer(model or tiny_model(), args, stage=stage, callbacks=[pruning] if pruning else None)


def zeros(model: LlamaForCausalLM) -> tuple[int, int]:
    """Return how many hidden weights are zero, and how many there are."""
    named = dict(model.named_parameters())
    hidden = [named[each.name] for each in describe(model.config).with_role("hidden")]
    return sum(int((weight == 0).sum()) for weight in hidden), sum(weight.numel() for weight in hidden)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ContinualTrainer:
    whole = trainer(tmp_path_factory.mktemp("pruned"), Pruning(SCHEDULE, EVERY))
    whole.train()
    return whole


def test_every_checkpoint_has_the_sparsity_of_the_schedule(finished: ContinualTrainer) -> None:
    """And it is a stock checkpoint, with the names of an unpruned one and no others."""
    previous = torch.zeros(0, dtype=torch.bool)
    for step, sparsity in enumerate((0, 0.15, 0.15, 0.37, 0.37, 0.37), start=1):
        folder = Path(str(finished.args.output_dir)) / f"checkpoint-{step}"
        assert load_file(folder / "model.safetensors").keys() == tiny_model().state_dict().keys()
        model = LlamaForCausalLM.from_pretrained(folder)
        found, total = zeros(model)
        assert found == round(sparsity * total)
        zero = torch.cat([weight.detach().flatten() == 0 for weight in model.parameters()])
        assert not len(previous) or bool((zero | ~previous).all()), "a pruned weight came back"
        previous = zero


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_continues_bit_for_bit(finished: ContinualTrainer, step: int, tmp_path: Path) -> None:
    shutil.copytree(Path(str(finished.args.output_dir)) / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    resumed = trainer(tmp_path, Pruning(SCHEDULE, EVERY))
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(finished))


def test_a_compiled_model_is_pruned_as_it_is_otherwise(finished: ContinualTrainer, tmp_path: Path) -> None:
    compiled = trainer(
        tmp_path, Pruning(SCHEDULE, EVERY), torch_compile=True, torch_compile_backend="eager", save_steps=6
    )
    compiled.train()
    torch.testing.assert_close(weights(compiled), weights(finished))
    assert torch.equal(weights(compiled) == 0, weights(finished) == 0)
    found = load_file(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")
    assert found.keys() == tiny_model().state_dict().keys()


def test_a_weight_that_happens_to_be_zero_is_not_taken_for_a_pruned_one(tmp_path: Path) -> None:
    """A block of zeros gets no gradient, so it stays zero beside the pruned weights; both runs tell them apart."""

    def model() -> LlamaForCausalLM:
        made = tiny_model()
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if name.startswith("model.layers.1.mlp"):
                    weight.zero_()  # all three: no gradient reaches any of them
        return made

    whole = trainer(tmp_path / "whole", Pruning((0.05, 0.6), 2), model())
    whole.train()
    assert isinstance(whole.model, LlamaForCausalLM)
    assert zeros(whole.model)[0] == round(0.6 * zeros(whole.model)[1])
    found, total = zeros(LlamaForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-3"))
    assert found > round(0.05 * total)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "half" / "checkpoint-3")
    resumed = trainer(tmp_path / "half", Pruning((0.05, 0.6), 2), model())
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_in_a_new_stage_what_was_pruned_stays_pruned(finished: ContinualTrainer, tmp_path: Path) -> None:
    """From its first step on, which a kill before the first sparsity does not change."""

    def pruned() -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(Path(str(finished.args.output_dir)) / f"checkpoint-{STEPS}")

    def count(output: Path, step: int) -> int:
        return zeros(LlamaForCausalLM.from_pretrained(output / f"checkpoint-{step}"))[0]

    total = zeros(pruned())[1]
    further = trainer(tmp_path / "further", Pruning((0.5,), 3, keep_zeros=True), pruned())
    further.train()
    found = [count(tmp_path / "further", step) for step in (1, 2, 3, STEPS)]
    assert found == [round(share * total) for share in (0.37, 0.37, 0.5, 0.5)]
    shutil.copytree(tmp_path / "further" / "checkpoint-1", tmp_path / "half" / "checkpoint-1")
    resumed = trainer(tmp_path / "half", Pruning((0.5,), 3, keep_zeros=True))
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(further))
    with pytest.raises(ValueError, match=r"weights are zero already, and the first sparsity, 0.2, asks for"):
        trainer(tmp_path / "less", Pruning((0.2,), 3, keep_zeros=True), pruned()).train()


@pytest.mark.parametrize(
    ("pruning", "sentence"),
    [
        (Pruning((0.15, 0.4), EVERY), r"schedule \[0.15, 0.37\] and is resumed with \[0.15, 0.4\]"),
        (Pruning(SCHEDULE, 1), "every 2 and is resumed with 1"),
        (Pruning(SCHEDULE, EVERY, roles=("hidden", "readout")), "roles"),
    ],
)
def test_another_schedule_is_refused_on_resume(
    finished: ContinualTrainer, pruning: Pruning, sentence: str, tmp_path: Path
) -> None:
    shutil.copytree(Path(str(finished.args.output_dir)) / "checkpoint-3", tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path, pruning).train(resume_from_checkpoint=True)


def test_a_pruned_run_is_not_resumed_without_the_callback(finished: ContinualTrainer, tmp_path: Path) -> None:
    """Its zeros would be trained again."""
    shutil.copytree(Path(str(finished.args.output_dir)) / "checkpoint-3", tmp_path / "checkpoint-3")
    with pytest.raises(
        ValueError, match=r"is of a run with a MagnitudePruningCallback \(.*0.37.*\), and there is none"
    ):
        trainer(tmp_path, None).train(resume_from_checkpoint=True)


def test_a_run_that_was_not_pruned_is_refused_on_resume(tmp_path: Path) -> None:
    trainer(tmp_path, None, save_steps=3).train()
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    with pytest.raises(ValueError, match="was not pruned until step"):
        trainer(tmp_path, Pruning(SCHEDULE, EVERY)).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("pruning", "settings", "sentence"),
    [
        (Pruning((0.5,), STEPS + 1), {}, "ends at step 6, before the last sparsity at step 7"),
        (
            Pruning((0.5,), 1),
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1},
            "load_best_model_at_end",
        ),
        (Pruning((0.5,), 1, roles=("router",)), {}, "no trainable weight with the role router"),
    ],
)
def test_a_run_that_cannot_end_as_asked_is_refused(
    pruning: Pruning, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        args = arguments(tmp_path, **{"save_steps": 1, **settings})
        stage = Stage("prune", "constant", replay(0.3), max_steps=STEPS)
        ContinualTrainer(
            tiny_model(), args, stage=stage, callbacks=[pruning], eval_dataset=replay(0.3).sources["new"]
        ).train()


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'hidden'"):
        Pruning((0.5,), 1, roles=("hiden",))  # type: ignore[arg-type]


def test_half_of_bfloat16_is_pruned_exactly(tmp_path: Path) -> None:
    """Many magnitudes are equal in bfloat16."""
    model = tiny_model().bfloat16()
    pruning = Pruning((0.5,), 3)
    trainer(tmp_path, pruning, model, save_strategy="no").train()
    assert sum(int(mask.sum()) for mask in pruning.masks.values()) == round(0.5 * zeros(model)[1])
