"""One rank of a launched run: distil under an engine, and write down the losses, the weights and the teacher."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

from hf_warmscale import ContinualTrainingArguments, DistillationTrainer, ReplayMixture, Stage, TeacherCache
from hf_warmscale.training.launch import (
    engine_name,
    is_partitioned,
    launched_processes,
    prepare_processes,
    whole_tensors,
)
from tests.processes import use_gloo
from tests.training.ranks_worker import uneven
from tests.training.tiny import VOCAB

STEPS = 2
ADAPTERS = LoraConfig(target_modules=["q_proj", "down_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
ZERO = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"),
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
"""A threshold of 0, so that small weights are partitioned too."""


@dataclass(frozen=True)
class Case:
    """What is distilled: a full student with a copy of its start, or adapters; partitioned as it is loaded, or not."""

    dtype: str = "float32"
    cached: bool = False
    adapter: bool = False
    partitioned: bool = False

    @property
    def name(self) -> str:
        return " ".join([self.dtype, *(name for name, value in vars(self).items() if value is True)])

    @property
    def alone(self) -> str:
        """The name of the case that has the same losses in one process with a live teacher."""
        return replace(self, cached=False, partitioned=False).name


CASES = {
    "single": [Case(), Case("bfloat16"), Case("bfloat16", cached=True), Case("bfloat16", adapter=True)],
    "ddp": [Case(), Case("bfloat16", cached=True, adapter=True)],
    "zero-3": [
        Case(),
        Case("bfloat16", partitioned=True),
        Case("bfloat16", cached=True, adapter=True, partitioned=True),
    ],
}


def models(folder: Path, case: Case) -> tuple[Any, LlamaForCausalLM]:
    """Load a student and its teacher."""
    student: Any = LlamaForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    teacher = LlamaForCausalLM.from_pretrained(folder / "teacher", dtype=getattr(torch, case.dtype))
    torch.manual_seed(3)
    return get_peft_model(student, ADAPTERS) if case.adapter else student, teacher


def settings(output: Path, engine: str) -> dict[str, Any]:
    """Steps of four rows over all ranks; an epsilon far above rounding, which Adam would else turn into steps."""
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    steps = {"per_device_train_batch_size": 4 // launched_processes(), "learning_rate": 1e-2, "adam_epsilon": 1e-4}
    return {"output_dir": str(output), **quiet, **steps, **({"deepspeed": ZERO} if engine == "zero-3" else {})}


def run(folder: Path, engine: str, case: Case) -> dict[str, Any]:
    """Distil once. Some rows count few labels, and a rank may get no row that the teacher is heard on."""
    early = None if case.partitioned else models(folder, case)
    given = settings(folder / "run", engine)
    args = ContinualTrainingArguments(**prepare_processes(given | ({"use_cpu": True} if engine == "single" else {})))
    student, teacher = early or models(folder, case)
    new = uneven(60, 1)
    mixture = ReplayMixture({"new": new, "old": uneven(40, 2)}, {"new": 0.4, "old": 0.6}, 0)
    heard = TeacherCache.write(folder / "cache", teacher, new, k=VOCAB) if case.cached else teacher
    trainer = DistillationTrainer(
        student,
        args,
        teacher=heard,
        alpha=0.6,
        sources=["new"],
        self_kd=0.5,
        stage=Stage("distil", "constant", mixture, max_steps=STEPS),
    )
    if case == Case("bfloat16", partitioned=True):
        refuse_nan(trainer, student, teacher)
    trainer.train()
    weights = {name: tensor.clone() for name, tensor in whole_tensors(student)}
    if trainer.is_world_process_zero():
        save_file(weights, folder / f"{engine} {case.name}.safetensors")
    stored = load_file(folder / "teacher" / "model.safetensors")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "engine": engine_name(trainer.model_wrapped),
        "partitioned": is_partitioned(teacher),
        "frozen": all(torch.equal(each, stored[name].to(teacher.dtype)) for name, each in whole_tensors(teacher))
        and all(parameter.grad is None for parameter in teacher.parameters()),
        "dtype": str(teacher.dtype),
        "losses": [
            {key: value for key, value in entry.items() if key == "loss" or key.startswith(("loss/", "distillation/"))}
            for entry in history
        ],
    }


def refuse_nan(trainer: DistillationTrainer, student: nn.Module, teacher: LlamaForCausalLM) -> None:
    """A weight that is not finite is seen wherever it lies, and before any batch."""
    partition: Any = teacher.lm_head.weight.ds_tensor
    kept = partition.clone()
    if trainer.args.process_index == 1:
        partition.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"The teacher cannot be used: .*lm_head"):
        trainer._live(student, teacher)
    partition.data.copy_(kept)


def main(folder: Path, engine: str) -> None:
    """Run the cases of an engine, and write `FOLDER/<engine> <case> <rank>.json` for each."""
    if engine == "zero-3":
        use_gloo()
    for case in CASES[engine]:
        seen = run(folder, engine, case)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        (folder / f"{engine} {case.name} {rank}.json").write_text(json.dumps(seen))
        AcceleratorState._reset_state()
