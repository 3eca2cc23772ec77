"""The training runs of the quickstart: each a stage in a folder of its own, resumed if it was interrupted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_warmscale.checkpoints import RunFolder, checkpoint_step, run_checkpoints, write_text
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.quickstart.data import QuickstartData
from hf_warmscale.quickstart.settings import Settings
from hf_warmscale.quickstart.text import DOMAINS
from hf_warmscale.resize import grow_from_pretrained
from hf_warmscale.training import (
    ContinualTrainer,
    ContinualTrainingArguments,
    ReplayMixture,
    Stage,
    constant_checkpoints,
    get_schedule,
    seen_rows,
)

BASE_HIDDEN_SIZE, GROWN_HIDDEN_SIZE = 64, 128
EVALUATIONS, MIN_EVALUATION_STEPS, CONTINUED_SAVES = 8, 4, 12

CONTINUATION = {"name": "infinite_cosine", "warmup": 0.05, "cooldown": 0.15, "constant": 0.55}

KINDS = {"base": "base", "grown": "grown", "scratch": "grown", "continued": "continued", "no-replay": "continued"}
"""The runs in their order, and whose share of the budget each has."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder (`RunFolder`): what it left.
        tokens_per_step (`int`): of the run.
    """

    folder: RunFolder
    tokens_per_step: int

    @property
    def checkpoint(self) -> Path:
        """Its last checkpoint."""
        return self.folder.checkpoints[-1]

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Return tokens of this run and values of one logged metric."""
        points = self.folder.logged(metric)
        return [step * self.tokens_per_step for step, _ in points], [value for _, value in points]

    def constant_phase(self) -> list[Path]:
        """Return the checkpoints that were saved at a constant learning rate, the earliest first."""
        return constant_checkpoints(self.folder.path)


@dataclass(frozen=True)
class Runs:
    """The five training runs: the base, its growth and the control, the continuation and its control."""

    base: Run
    grown: Run
    scratch: Run
    continued: Run
    no_replay: Run


def model_config(settings: Settings, hidden_size: int) -> MupConfig:
    """Return the config of a 4-layer muP model with heads of 16, tuned at the base width."""
    heads = hidden_size // 16
    return MupConfig(
        vocab_size=settings.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 5 // 2,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=16,
        max_position_embeddings=4 * settings.row_length,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        mup={"base_hidden_size": BASE_HIDDEN_SIZE, "base_num_hidden_layers": 4},
    )


def fresh_model(settings: Settings, hidden_size: int) -> MupForCausalLM:
    """Return a randomly initialised model; the same one for the same seed."""
    set_seed(settings.seed)
    return MupForCausalLM(model_config(settings, hidden_size))


def train_all(folder: Path, data: QuickstartData, settings: Settings) -> Runs:
    """Train the base, grow it, and continue it on code, each beside its control."""
    training = _Training(folder, data, settings)
    annealed = get_schedule("wsd", warmup=0.02, cooldown=0.2)
    base = training.train(
        "base",
        Stage(
            "base",
            get_schedule("constant", warmup=0.05),
            ReplayMixture({"prose": data.rows("prose")}, {"prose": 1.0}, settings.seed),
            max_steps=settings.steps("base"),
        ),
        lambda: fresh_model(settings, BASE_HIDDEN_SIZE),
    )
    more = ReplayMixture({"more-prose": data.rows("more-prose")}, {"more-prose": 1.0}, settings.seed)
    grown = training.train(
        "grown",
        Stage("grown", annealed, more, max_steps=settings.steps("grown"), parent=base.checkpoint),
        lambda: grow(base.checkpoint, settings),
    )
    # The same rows, schedule and length as the grown model; only the start differs.
    scratch = training.train(
        "scratch",
        Stage("scratch", annealed, more, max_steps=settings.steps("grown")),
        lambda: fresh_model(settings, GROWN_HIDDEN_SIZE),
    )
    write_recipe(folder.parent / "continue.yaml", grown, data, settings)
    code = data.rows("code")
    shares = {"code": 1 - settings.replay, "prose": settings.replay}
    replay = ReplayMixture(
        {"code": code, **seen_rows(grown.checkpoint, {"prose": data.rows("prose")})}, shares, settings.seed
    )
    continued = training.continue_on("continued", replay, grown)
    no_replay = training.continue_on("no-replay", ReplayMixture({"code": code}, {"code": 1.0}, settings.seed), grown)
    return Runs(base, grown, scratch, continued, no_replay)


def write_recipe(path: Path, grown: Run, data: QuickstartData, settings: Settings) -> None:
    """Write the continuation with replay as a file for `warmscale train`, to be launched on several processes."""
    recipe = {
        "model_name_or_path": str(grown.checkpoint),
        "stage": "continued",
        "schedule": CONTINUATION,
        "max_steps": settings.steps("continued"),
        "mixture": {
            "code": {"path": str(data.path("code")), "weight": 1 - settings.replay},
            "prose": {"path": str(data.path("prose")), "weight": settings.replay, "seen_by": str(grown.checkpoint)},
        },
        "mixture_seed": settings.seed,
        "evaluation": {domain: str(data.path(f"{domain}-evaluation")) for domain in DOMAINS},
        "output_dir": str(path.parent / "runs" / "launched"),
        **_hyperparameters(settings),
        "logging_steps": 1,
        "save_steps": max(1, settings.steps("continued") // 2),
    }
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))


def grow(checkpoint: Path, settings: Settings) -> PreTrainedModel:
    """Return the base at twice its width by `szp`: shrunk, zero-padded, perturbed."""
    target = model_config(settings, GROWN_HIDDEN_SIZE)
    return grow_from_pretrained(
        MupForCausalLM.from_pretrained(checkpoint),
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        width="szp",
        seed=settings.seed,
    )


@dataclass(frozen=True)
class _Training:
    """Where the runs live and what they share."""

    folder: Path
    data: QuickstartData
    settings: Settings

    def continue_on(self, name: str, mixture: ReplayMixture, parent: Run) -> Run:
        """Continue a run under an infinite schedule, keeping the checkpoints of its constant phase."""
        steps = self.settings.steps("continued")
        stage = Stage(name, CONTINUATION, mixture, max_steps=steps, parent=parent.checkpoint)
        return self.train(
            name,
            stage,
            lambda: MupForCausalLM.from_pretrained(parent.checkpoint),
            save_steps=max(1, steps // CONTINUED_SAVES),
        )

    def train(
        self, name: str, stage: Stage, make_model: Callable[[], PreTrainedModel], save_steps: int | None = None
    ) -> Run:
        """Train a stage, or what is left of it, or read what it left when it was done."""
        folder, steps = self.folder / name, self.settings.steps(KINDS[name])
        last = run_checkpoints(folder)[-1:] if folder.is_dir() else []
        # A finished run is known by its last checkpoint, so a second call of the quickstart trains nothing twice.
        if not last or checkpoint_step(last[0]) != steps:
            arguments = _arguments(folder, steps, self.settings, save_steps)
            trainer = ContinualTrainer(
                make_model(),
                arguments,
                stage=stage,
                eval_dataset=dict(self.data.evaluation()),
                processing_class=self.data.tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_Progress(f"{list(KINDS).index(name) + 1}/{len(KINDS)} {name}"))
            trainer.train(resume_from_checkpoint=True if last else None)
        return Run(RunFolder(folder), self.settings.tokens_per_step)


def _arguments(folder: Path, steps: int, settings: Settings, save_steps: int | None) -> ContinualTrainingArguments:
    return ContinualTrainingArguments(
        output_dir=str(folder),
        **_hyperparameters(settings),
        logging_steps=max(1, steps // 40),
        eval_strategy="steps",
        eval_steps=max(MIN_EVALUATION_STEPS, steps // EVALUATIONS),
        save_steps=save_steps or max(1, -(-steps // 5)),
        # The continuation keeps all of its checkpoints: those of its constant phase are merged.
        save_total_limit=None if save_steps else 2,
        disable_tqdm=True,
    )


def _hyperparameters(settings: Settings) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": settings.batch_rows,
        "per_device_eval_batch_size": 4 * settings.batch_rows,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "adam_beta2": 0.95,
        "seed": settings.seed,
        "optim": "adamw_torch",
        "report_to": "none",
        "dataloader_pin_memory": False,
    }


class _Progress(TrainerCallback):
    """One progress bar with the time left and the training loss."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
