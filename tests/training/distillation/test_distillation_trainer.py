"""`DistillationTrainer` against the formula of its loss, in every kind of student, and what it refuses."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_warmscale import (
    ContinualTrainer,
    DistillationTrainer,
    EmulatedFineTuningForCausalLM,
    MupConfig,
    MupForCausalLM,
    Stage,
    TeacherCache,
)
from hf_warmscale.training.distillation.teacher import AdapterOff, LiveTeacher
from tests.conftest import perturb
from tests.training.families import configuration, family
from tests.training.tiny import VOCAB, arguments, losses, replay, tiny_model, train_tokenizer, weights

STEPS = 2


def student() -> LlamaForCausalLM:
    """Without dropout, so that its first loss is a function of its weights."""
    return tiny_model(dropout=0.0)


def teacher(**sizes: Any) -> LlamaForCausalLM:
    """A wider model with weights of its own."""
    torch.manual_seed(5)
    fields = {**configuration("llama"), "hidden_size": 24, **sizes}
    model = LlamaForCausalLM(LlamaConfig(**fields))
    perturb(model, std=0.3, seed=5)
    return model


def lora(model: PreTrainedModel) -> PeftModel:
    """Adapters that already say something."""
    config = LoraConfig(target_modules=["q_proj", "down_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def make(model: Any, folder: Path, *, steps: int = STEPS, settings: Any = None, **options: Any) -> DistillationTrainer:
    stage = Stage("distil", "constant", replay(0.5), max_steps=steps)
    options.setdefault("teacher", teacher())
    return DistillationTrainer(model, arguments(folder, **(settings or {})), stage=stage, **options)


def first_rows(trainer: DistillationTrainer) -> tuple[Tensor, Tensor]:
    """Return the tokens of the first step and which rows are new."""
    assert trainer.stage is not None and trainer.stage.mixture is not None
    found = trainer.stage.mixture.read(range(4))
    return torch.tensor([row["input_ids"] for _, row in found]), torch.tensor([number == 0 for number, _ in found])


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = copy.deepcopy(model).eval()(input_ids=tokens).logits
    return found[:, :-1]


def kl(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(first, second) of each position, from logits."""
    log_p, log_q = ((each / temperature).log_softmax(-1) for each in (first, second))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("with_start", ["frozen copy", "adapter off"])
def test_the_loss_of_a_step_is_the_formula(direction: Any, with_start: str, tmp_path: Path) -> None:
    """And the loss by source stays that of the text, with the divergence beside it."""
    base = student()
    model: Any = lora(base) if with_start == "adapter off" else base
    options = {"temperature": 2.0, "alpha": 0.7, "sources": ["new"], "self_kd": 0.3, "direction": direction}
    trainer = make(model, tmp_path, steps=1, **options)
    tokens, new = first_rows(trainer)
    assert 0 < int(new.sum()) < 4
    mine, theirs = logits(model, tokens), logits(teacher(), tokens)
    start = logits(base, tokens) if with_start == "frozen copy" else None
    if start is None:
        with torch.no_grad(), model.disable_adapter():
            start = model.eval()(input_ids=tokens).logits[:, :-1]
    nll = cross_entropy(mine.transpose(1, 2), tokens[:, 1:], reduction="none")
    towards = kl(theirs, mine, 2.0) if direction == "forward" else kl(mine, theirs, 2.0)
    divergence = torch.where(new[:, None], towards, kl(start, mine))
    weighted = torch.where(new[:, None], 0.7 * 4 * towards, 0.3 * divergence)
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx(float((0.3 * nll + weighted).mean()), rel=1e-5)
    for name, rows in (("new", new), ("old", ~new)):
        assert entry[f"loss/{name}"] == pytest.approx(float(nll[rows].mean()), rel=1e-5)
        assert entry[f"distillation/{name}"] == pytest.approx(float(divergence[rows].mean()), rel=1e-4, abs=1e-6)


def test_a_copy_of_the_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    model = student()
    trainer = make(model, tmp_path, teacher=copy.deepcopy(model))
    tokens, _ = first_rows(trainer)
    loss = trainer.compute_loss(model.train(), {"input_ids": tokens, "labels": tokens})
    loss.backward()
    assert float(loss.detach()) == 0
    assert not any(bool(weight.grad.any()) for weight in model.parameters() if weight.grad is not None)


def test_in_mixed_precision_the_start_computes_as_the_student_does(tmp_path: Path) -> None:
    trainer = make(student(), tmp_path, steps=1, sources=["new"], self_kd=1.0, settings={"bf16": True})
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["distillation/old"] == 0 and entry["distillation/new"] > 0


def test_only_adapters_learn_and_without_them_the_model_is_the_same(tmp_path: Path) -> None:
    base = student()
    tokens = torch.arange(16).reshape(2, 8)
    before = logits(base, tokens)
    model = lora(base)
    adapted = logits(model, tokens)
    make(model, tmp_path, sources=["new"], self_kd=1.0, alpha=0.5).train()
    assert not torch.equal(logits(model, tokens), adapted)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model.eval()(input_ids=tokens).logits[:, :-1], before)
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None or weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)


def test_an_adapter_that_was_frozen_stays_frozen() -> None:
    model = lora(student())
    frozen = [weight.requires_grad_(False) for name, weight in model.named_parameters() if "lora_A" in name]
    assert isinstance(model, PeftModel)
    AdapterOff(model).predict({"input_ids": torch.arange(8)[None]})
    assert frozen and not any(weight.requires_grad for weight in frozen)
    assert any(weight.requires_grad for weight in model.parameters())


def test_a_start_that_was_copied_is_not_replaced_by_other_weights(tmp_path: Path) -> None:
    before = Stage("before", "constant", replay(0.5), max_steps=1)
    ContinualTrainer(student(), arguments(tmp_path / "first", save_steps=1), stage=before).train()
    (parent,) = (tmp_path / "first").glob("checkpoint-*")
    trainer = make(student(), tmp_path / "second", sources=["new"], self_kd=1.0)
    with pytest.raises(ValueError, match=r"^self_kd has copied the student already"):
        trainer.train(resume_from_checkpoint=str(parent))


def test_only_the_last_blocks_learn(tmp_path: Path) -> None:
    model = student()
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    make(model, tmp_path).train()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith("model.layers.1.")}


@pytest.mark.parametrize("name", ["mixtral", "exaone"])
def test_a_router_loss_stays_and_a_loss_of_the_models_own_is_corrected(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the same whether the model calls ours, or has its own and gives its logits."""
    totals = []
    for installs in (True, False):
        model = family(name)
        trainer = make(model, tmp_path / str(installs), alpha=0.5, settings={"gradient_accumulation_steps": 2})
        if not installs:
            monkeypatch.setattr("hf_warmscale.training.token_loss.models_with_causal_lm_loss", lambda model: [])
        trainer.train()
        totals.append(losses(trainer))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


def test_mup_students_keep_their_groups(tmp_path: Path) -> None:
    base = {**configuration("llama"), "hidden_size": 8, "intermediate_size": 16, "head_dim": 8}
    wide = {**base, "hidden_size": 16, "num_attention_heads": 2}
    config = MupConfig(**{**wide, "model_type": "llama"}, mup={"base_hidden_size": 8})
    trainer = make(MupForCausalLM(config), tmp_path)
    trainer.train()
    assert trainer.lr_scheduler is not None
    rates = {group["name"]: group["initial_lr"] for group in trainer.lr_scheduler.optimizer.param_groups}
    assert len(set(rates.values())) > 1


def test_a_composite_teaches_as_its_combination(tmp_path: Path) -> None:
    """l + t - s of three models, of which two have padding rows."""
    large, tuned, small = teacher(vocab_size=VOCAB + 6), tiny_model(seed=1), tiny_model(seed=2)
    composite = EmulatedFineTuningForCausalLM(base=large, tuned=tuned, reference=small)
    model = student()
    trainer = make(model, tmp_path, teacher=composite)
    tokens, _ = first_rows(trainer)
    parts = [logits(each, tokens)[..., :VOCAB].log_softmax(-1) for each in (large, tuned, small)]
    expected = kl(parts[0] + parts[1] - parts[2], logits(model, tokens)).mean()
    loss = trainer.compute_loss(model.train(), {"input_ids": tokens, "labels": tokens})
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_a_run_that_was_killed_goes_on_bit_for_bit_and_under_the_same_settings(tmp_path: Path) -> None:
    options = {"alpha": 0.5, "sources": ["new"], "self_kd": 0.5, "settings": {"save_steps": 2}}
    whole = make(tiny_model(), tmp_path / "whole", steps=4, **options)
    whole.train()
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", half / "checkpoint-2")
    resumed = make(tiny_model(), half, steps=4, **options)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(whole))
    shutil.rmtree(half / "checkpoint-4")
    for change, said in (
        ({"temperature": 2.0}, "distillation.temperature is 1.0 there and 2.0 now"),
        ({"teacher": teacher(hidden_size=32)}, "distillation.teacher is "),
        ({"self_kd": 0.0}, "distillation.start is .* there and None now"),
    ):
        with pytest.raises(ValueError, match=said):
            make(tiny_model(), half, steps=4, **options | change).train(resume_from_checkpoint=True)


BROKEN: dict[str, dict[str, Any]] = {
    "temperature is 0": {"temperature": 0},
    "temperature is nan": {"temperature": float("nan")},
    "alpha is 1.5; it must lie between 0": {"alpha": 1.5},
    "alpha is -0.1": {"alpha": -0.1},
    "no direction 'backward'": {"direction": "backward"},
    "no source 'nwe'; did you mean 'new'": {"sources": ["nwe"]},
    "sources is empty": {"sources": []},
    "self_kd is -1": {"self_kd": -1, "sources": ["new"]},
    "self_kd is 1, but the teacher is heard on every source; name": {"self_kd": 1},
    "self_kd is 1, but the teacher is heard on every source; leave": {"self_kd": 1, "sources": ["new", "old"]},
    "The teacher is a Linear; pass a causal": {"teacher": nn.Linear(2, 2)},
    "64 tokens and the teacher 65": {"teacher": teacher(vocab_size=VOCAB + 1)},
    "label_smoothing_factor replaces": {"settings": {"label_smoothing_factor": 0.1}},
}


@pytest.mark.parametrize("said", BROKEN)
def test_bad_settings_are_refused_in_one_sentence(said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        make(student(), tmp_path, **BROKEN[said])


def test_sources_need_a_stage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sources are those of the mixture of a stage"):
        DistillationTrainer(student(), arguments(tmp_path), teacher=teacher(), sources=["new"])


def test_a_teacher_with_the_students_own_weights_is_refused(tmp_path: Path) -> None:
    model = student()
    with pytest.raises(ValueError, match="The teacher shares weights with the student"):
        make(lora(model), tmp_path, teacher=model)


@pytest.mark.parametrize("where", ["weights", "logits"])
def test_a_teacher_that_is_not_finite_is_refused_before_the_first_step(where: str, tmp_path: Path) -> None:
    model, broken = student(), teacher()
    before = weights_of(model)
    with torch.no_grad():
        if where == "weights":
            broken.lm_head.weight[3, 4] = torch.nan
        else:
            broken.model.norm.weight.fill_(torch.finfo(torch.float32).max)
            broken.lm_head.weight.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(ValueError, match=r"teacher .*(holds NaN|not finite)"):
        make(model, tmp_path, teacher=broken).train()
    assert torch.equal(weights_of(model), before)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_another_tokenizer_is_refused_and_padding_rows_are_ignored(tmp_path: Path) -> None:
    """With a tokenizer at both models, rows beyond it are padding; the first token that differs is named."""
    tokenizer = train_tokenizer(size=280)
    rows = len(tokenizer)
    other = train_tokenizer(["one two three four five six seven eight nine ten eleven"], size=280)
    named: dict[str, Any] = {}
    for name, each, padding in (("same", tokenizer, 6), ("other", other, 6)):
        model = teacher(vocab_size=rows + padding)
        model.save_pretrained(tmp_path / name)
        each.save_pretrained(tmp_path / name)
        named[name] = LlamaForCausalLM.from_pretrained(tmp_path / name)
    config = LlamaConfig(**{**configuration("llama"), "vocab_size": rows + 2})

    def trainer(name: str) -> DistillationTrainer:
        model = LlamaForCausalLM(config)
        return DistillationTrainer(model, arguments(tmp_path), processing_class=tokenizer, teacher=named[name])

    heard = trainer("same").teacher
    assert isinstance(heard, LiveTeacher) and heard.num_ids == rows
    for name in ("same", "other"):
        row = {"input_ids": list(range(8))}
        named[f"cache of {name}"] = TeacherCache.write(tmp_path / f"cache of {name}", named[name], [row], k=4)
    assert trainer("cache of same").teacher is named["cache of same"]
    for name in ("other", "cache of other"):
        with pytest.raises(ValueError, match="do not share a vocabulary: the token"):
            trainer(name)
