"""The training arguments that stages add to those of transformers."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_warmscale.refusals import refuse_unknown

MISMATCH = ("error", "override", "use_checkpoint")


@dataclass
class ContinualArguments:
    """What `ContinualMixin` reads from the arguments; mix it into the arguments of any trainer.

    ```python
    @dataclass
    class ContinualSFTConfig(ContinualArguments, SFTConfig): ...
    ```
    """

    on_mismatch: str = field(
        default="error",
        metadata={
            "help": "What to do when a resumed checkpoint and the arguments differ: 'error' shows the differences, "
            "'override' takes the arguments, 'use_checkpoint' takes the checkpoint.",
            "choices": list(MISMATCH),
        },
    )
    eval_weights: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "Weights of the evaluation domains in eval_weighted_loss, as JSON; they must sum to 1."},
    )

    eval_tokens_per_byte: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Tokens in a byte of text by evaluation domain, as JSON; adds eval_<domain>_bits_per_byte, which "
            "compares across tokenizers. A YAML file fills it in from its packed data."
        },
    )

    def __post_init__(self) -> None:
        refuse_unknown("on_mismatch", self.on_mismatch, MISMATCH)
        parent_post_init = getattr(super(), "__post_init__", None)
        if parent_post_init is not None:
            parent_post_init()
        if isinstance(self.eval_weights, dict) and abs(sum(self.eval_weights.values()) - 1) > 1e-6:
            raise ValueError(f"eval_weights are {self.eval_weights}; make them sum to 1.")


@dataclass
class ContinualTrainingArguments(ContinualArguments, TrainingArguments):
    """`TrainingArguments` for a `ContinualTrainer`: every argument of transformers, and those of `ContinualArguments`.

    The stage decides `max_steps` and the schedule, so leave `max_steps`, `num_train_epochs`, `lr_scheduler_type` and
    `warmup_steps` at their defaults. `learning_rate` is the peak of a schedule that names none.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "eval_weights", "eval_tokens_per_byte"]  # noqa: RUF012
