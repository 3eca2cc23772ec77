"""The fields of a recipe beside the training arguments: which model, and which stage."""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any] | str | None
"""A mapping or one value in the file, JSON on the command line. Given `dict` alone, `HfArgumentParser` would refuse
a name."""


@dataclass
class ModelArguments:
    """Which model to train."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint, folder or Hub id to start from; append @revision to a Hub id."},
    )
    model_config: Json = field(
        default=None,
        metadata={"help": "Start from random weights instead: the fields of a config, with model_type, as JSON."},
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the tokenizer; by default that of the model."}
    )
    dtype: str = field(
        default="float32", metadata={"help": "Data type of the weights in memory: float32, bfloat16 or float16."}
    )
    lora: Json = field(
        default=None, metadata={"help": "Train LoRA adapters: the fields of peft's LoraConfig, as JSON."}
    )


@dataclass
class StageArguments:
    """Which stage to train."""

    stage: str = field(default="stage", metadata={"help": "Name of the stage."})
    schedule: Json = field(
        default="rewarm_cosine", metadata={"help": "Name of the schedule, or its name and parameters as JSON."}
    )
    max_tokens: float | None = field(
        default=None,
        metadata={"help": "Length of the stage in tokens, for packed rows; or give max_steps."},
    )
    total_batch_size: Json = field(
        default=None,
        metadata={
            "help": "Rows in an optimizer step, over all ranks and accumulation steps, or rows by the sample at which "
            "they begin: {0: 16, 640: 32}. The accumulation steps follow from it, so leave "
            "gradient_accumulation_steps out. An anneal takes what its checkpoint stands at."
        },
    )
    optimizer_state: str = field(
        default="reset",
        metadata={
            "help": "What happens to the optimizer's moments of the parent: 'reset' or 'keep'.",
            "choices": ["reset", "keep"],
        },
    )
    parent: str | None = field(
        default=None, metadata={"help": "Checkpoint whose lineage continues; by default model_name_or_path."}
    )
    mixture: Json = field(
        default=None,
        metadata={
            "help": "Sources by name, as JSON: {path, weight} for packed rows; {stream, num_rows, sequence_length, "
            "weight} for a dataset that is tokenized while it is read (optional: subset, split, text_column, "
            "split_special_tokens). A weight is a number, or numbers by sample: {0: 0.9, 800: 0.5}. Optional for "
            "both: seen_by (a checkpoint: draw only rows that its run saw), name "
            "(of the source in that run) and max_passes."
        },
    )
    distillation: Json = field(
        default=None,
        metadata={
            "help": "Train towards a teacher, as JSON: {teacher: checkpoint or Hub id}. Optional: dtype (of the "
            "teacher); temperature; alpha; direction (forward or reverse); sources (of the mixture, those the teacher "
            "is heard on); self_kd (weight of the student's own start on the others); cache (folder of the teacher's "
            "predictions: written once, or read without a teacher); top_k (tokens per position in the cache)."
        },
    )
    anneal_from: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint in the constant phase of the stage that this file describes: load it with its "
            "optimizer moments and anneal it. Set another output_dir."
        },
    )
    anneal_until: float | None = field(
        default=None, metadata={"help": "Tokens at which the anneal ends, counted from the start of the trunk."}
    )
    anneal_shape: str | None = field(
        default=None, metadata={"help": "Shape of the anneal: linear, 1-sqrt, cosine or exponential."}
    )
    mixture_seed: int = field(default=0, metadata={"help": "Seed of the order of the rows."})
    evaluation: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Packed data to evaluate on, by domain, as JSON."}
    )
