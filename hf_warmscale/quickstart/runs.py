"""The training runs of the quickstart: each a stage in a folder of its own, resumed if it was interrupted."""

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
from hf_warmscale.quickstart.settings import WARMUPS, Settings
from hf_warmscale.quickstart.text import DOMAINS
from hf_warmscale.resize import grow_from_pretrained
from hf_warmscale.studies import PlannedRun
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
CONTINUATIONS = ("continued", "no-replay")


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

    def curves(self) -> dict[str, Any]:
        """Return the training loss, and the loss of each domain, against the tokens of this run."""
        metrics: dict[str, str] = {"train": "loss", **{domain: f"eval_{domain}_loss" for domain in DOMAINS}}
        curves = {name: self.curve(metric) for name, metric in metrics.items()}
        return {name: {"tokens": tokens, "loss": losses} for name, (tokens, losses) in curves.items()}

    def constant_phase(self) -> list[Path]:
        """Return the checkpoints that were saved at a constant learning rate, the earliest first."""
        return constant_checkpoints(self.folder.path)


@dataclass(frozen=True)
class Runs:
    """The training runs: the base, its growth and two controls, the continuation and its control."""

    base: Run
    grown: Run
    trained_on: Run
    scratch: Run
    continued: Run
    no_replay: Run


def planned_runs(settings: Settings) -> list[PlannedRun]:
    """Return the training runs in their order, each after those that it starts from."""

    def planned(name: str, kind: str, hidden_size: int, *after: str) -> PlannedRun:
        steps = settings.steps(kind)
        tokens = steps * settings.tokens_per_step
        return PlannedRun(name, {"hidden_size": hidden_size, "steps": steps, "tokens": tokens}, after)

    return [
        planned("base", "base", BASE_HIDDEN_SIZE),
        planned("grown", "grown", GROWN_HIDDEN_SIZE, "base"),
        planned("trained-on", "grown", BASE_HIDDEN_SIZE, "base"),
        planned("scratch", "grown", GROWN_HIDDEN_SIZE),
        planned("continued", "continued", GROWN_HIDDEN_SIZE, "grown"),
        planned("no-replay", "continued", GROWN_HIDDEN_SIZE, "grown"),
    ]


def finished_runs(folder: Path, settings: Settings) -> Runs:
    """Return the runs that lie in a folder."""
    # The fields of `Runs` are in the order of the plan.
    return Runs(*(Run(RunFolder(folder / run.name), settings.tokens_per_step) for run in planned_runs(settings)))


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


def train_run(run: PlannedRun, folder: Path, data: QuickstartData, settings: Settings) -> dict[str, Any]:
    """Train a run, or what is left of it, and return what it logged.

    Args:
        run (`PlannedRun`): one of [`planned_runs`].
        folder (`Path`): where the runs lie.
        data (`QuickstartData`): rows and documents.
        settings (`Settings`): of the quickstart.
    """
    parent = Run(RunFolder(folder / run.after[0]), settings.tokens_per_step).checkpoint if run.after else None
    stage = _stage(run, parent, data, settings)
    steps, target = run.content["steps"], folder / run.name
    last = run_checkpoints(target)[-1:] if target.is_dir() else []
    # An interruption between the last checkpoint and its JSON: nothing is left to train.
    if not last or checkpoint_step(last[0]) != steps:
        is_continuation = run.name in CONTINUATIONS
        save_steps = max(1, steps // CONTINUED_SAVES) if is_continuation else None
        trainer = ContinualTrainer(
            _model(run, parent, settings),
            _arguments(target, steps, settings, save_steps),
            stage=stage,
            eval_dataset=dict(data.evaluation()),
            processing_class=data.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Progress(run.name))
        trainer.train(resume_from_checkpoint=True if last else None)
    return {"curves": Run(RunFolder(target), settings.tokens_per_step).curves()}


def _stage(run: PlannedRun, parent: Path | None, data: QuickstartData, settings: Settings) -> Stage:
    steps, seed = run.content["steps"], settings.seed
    if run.name in CONTINUATIONS:
        assert parent is not None
        code, shares = {"code": data.rows("code")}, {"code": 1.0}
        if run.name == "continued":
            code |= seen_rows(parent, {"prose": data.rows("prose")})
            shares = {"code": 1 - settings.replay, "prose": settings.replay}
        return Stage(run.name, CONTINUATION, ReplayMixture(code, shares, seed), max_steps=steps, parent=parent)
    # Grown, trained on and from scratch: the same rows in the same order, the same schedule and length.
    name = "prose" if run.name == "base" else "more-prose"
    schedule = (
        get_schedule("constant", warmup=WARMUPS["base"])
        if run.name == "base"
        else get_schedule("wsd", warmup=WARMUPS["grown"], cooldown=0.2)
    )
    mixture = ReplayMixture({name: data.rows(name)}, {name: 1.0}, seed)
    return Stage(run.name, schedule, mixture, max_steps=steps, parent=parent)


def _model(run: PlannedRun, parent: Path | None, settings: Settings) -> PreTrainedModel:
    if parent is None:
        return fresh_model(settings, run.content["hidden_size"])
    return grow(parent, settings) if run.name == "grown" else MupForCausalLM.from_pretrained(parent)


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
