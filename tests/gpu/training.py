"""Training on the device: bf16, a compiled model, muP and a live teacher, each beside a plain loop on the CPU."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_warmscale import ContinualTrainer, DistillationTrainer, MupConfig, MupForCausalLM, mup_param_groups
from tests.gpu.registry import Figures, Machine, check, require, require_same_losses
from tests.gpu.stages import ADAM, RATE, config_of, llama, losses, plain_losses, shape, train


@check
def bf16_training(machine: Machine, figures: Figures) -> None:
    """The losses under bf16 are those of float32 up to rounding, and those by source add up to them."""
    model = llama(shape(machine))
    expected = plain_losses(machine, deepcopy(model))
    trainer = train(machine, model, bf16=True)
    require_same_losses("bf16", losses(trainer), expected, torch.bfloat16, figures)
    add_up(trainer, figures)


def add_up(trainer: ContinualTrainer, figures: Figures) -> None:
    """Require the losses by source to have the loss of the step between them."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    figures["by_source"] = [{key: entry[key] for key in entry if key.startswith("loss/")} for entry in entries]
    for entry, parts in zip(entries, figures["by_source"], strict=True):
        require(bool(parts), "There are no losses by source.")
        slack = 1e-4 * entry["loss"]  # the loss is logged with few digits
        between = min(parts.values()) - slack <= entry["loss"] <= max(parts.values()) + slack
        require(between, f"The loss {entry['loss']} does not lie between those by source, {parts}.")


@check
def compiled_training(machine: Machine, figures: Figures) -> None:
    """A compiled model has the losses of the plain one, also by source."""
    sizes, backend = replace(shape(machine), num_hidden_layers=2), "eager" if machine.tiny else "inductor"
    for dtype in (torch.float32, torch.bfloat16):
        run = partial(train, machine, bf16=dtype == torch.bfloat16)
        plain, compiled = run(llama(sizes)), run(llama(sizes), torch_compile=True, torch_compile_backend=backend)
        require_same_losses(str(dtype), losses(compiled), losses(plain), dtype, figures)
        add_up(compiled, figures)


@check
def mup_training(machine: Machine, figures: Figures) -> None:
    """A muP model trains on its groups as in a plain loop on them."""
    fields = config_of(shape(machine)).to_dict() | {"mup": {"base_hidden_size": shape(machine).hidden_size // 2}}
    torch.manual_seed(0)
    model = MupForCausalLM(MupConfig(**{key: value for key, value in fields.items() if key != "model_type"}))
    other = deepcopy(model)
    groups = mup_param_groups(other, lr=RATE, weight_decay=0.0, eps=ADAM["eps"])
    figures["rates"] = sorted({group["lr"] for group in groups})
    require(len(figures["rates"]) > 1, "All groups have one rate, so nothing was compared.")
    expected = plain_losses(machine, other, groups)
    require_same_losses("mup", losses(train(machine, model)), expected, torch.float32, figures)


@check
def distillation(machine: Machine, figures: Figures) -> None:
    """A stage towards a live teacher has the losses of the formula."""
    student, teacher = llama(shape(machine)), llama(shape(machine), seed=1).eval()
    expected = plain_losses(machine, deepcopy(student), loss_of=partial(mixed, teacher))
    towards = partial(DistillationTrainer, teacher=teacher, alpha=0.5, temperature=2.0)
    require_same_losses("teacher", losses(train(machine, student, towards)), expected, torch.float32, figures)


def mixed(teacher: PreTrainedModel, student: PreTrainedModel, batch: Tensor) -> Tensor:
    """Return half the cross-entropy and half the divergence at temperature 2, times its square (1503.02531)."""
    output = student(input_ids=batch, labels=batch, use_cache=False)
    with torch.no_grad():
        wanted = teacher(input_ids=batch, use_cache=False).logits
    student_says, teacher_says = ((each[:, :-1] / 2).log_softmax(-1).flatten(0, 1) for each in (output.logits, wanted))
    divergence = torch.nn.functional.kl_div(student_says, teacher_says, log_target=True, reduction="batchmean")
    loss: Tensor = 0.5 * output.loss + 0.5 * 4 * divergence
    return loss
