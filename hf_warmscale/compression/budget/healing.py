"""Heal what a search found by a recipe of `warmscale train`: the winner to the end, and finalists briefly."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from hf_warmscale.checkpoints import run_checkpoints, save_model
from hf_warmscale.checkpoints.source import find_source
from hf_warmscale.resize import ShrinkReceipt
from hf_warmscale.staging import read_json
from hf_warmscale.training.launch import launched_processes
from hf_warmscale.training.recipe.configuration import TrainingConfiguration, read_configuration
from hf_warmscale.training.recipe.run import prepare_stage, train_configuration
from hf_warmscale.training.recipe.yaml_file import as_mapping
from hf_warmscale.training.stage import StageRecord
from hf_warmscale.training.trainer import ContinualTrainer

CUT, FINALISTS = "_cut", "_finalists"
"""Folders in the run folder: the unhealed winner, and a run for each finalist. Uploads of a run leave them out."""


class RecipeHealing:
    """Train the winner of a search as a recipe says; pass it to [`shrink_to_budget`] as `heal`.

    The unhealed model is written to `_cut` in the `output_dir` of the recipe and trained from there, exactly as
    `warmscale train` would. Called again after a kill, it continues from the last checkpoint.

    Args:
        recipe (`str` or `PathLike`): a YAML file of `warmscale train`. Its model is replaced by the winner; the
            `teacher` of its `distillation` is the source unless it names another.
        source (`str` or `PathLike`): the model that is shrunk, a folder or a Hub id.

    Raises:
        ValueError, FileNotFoundError: for a mistake in the recipe, if its run folder holds another run, or if there
            are several processes.

    Example:

    ```python
    >>> healing = RecipeHealing("heal.yaml", "large")
    >>> small = shrink_to_budget("large", parameters=100e6, calibration=texts, documents=held_out, heal=healing)
    >>> small.budget_search["healed"]["minus_unhealed"]
    ```
    """

    stage: StageRecord
    """The record of the training, once it has ended."""

    def __init__(self, recipe: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
        if launched_processes() > 1:
            raise ValueError(
                "Healing after a search runs in one process; search alone first, then start the command that `shrink` "
                "prints with accelerate launch."
            )
        self.recipe, self.source = recipe, os.fspath(source)
        configuration = read_configuration(recipe)
        distillation = as_mapping("distillation", configuration.stage.distillation or {})
        self._distillation = json.dumps({"teacher": self.source, **distillation})
        for name in ("anneal_from", "parent"):
            if getattr(configuration.stage, name) is not None:
                raise ValueError(
                    f"{name} in {configuration.file} names a model, and healing trains the winner; leave it out."
                )
        # A mistake is found before the search, not after it. The source stands in for the winner.
        prepare_stage(read_configuration(recipe, self._overrides(self.source)))
        self.run_folder = Path(str(configuration.training.output_dir))
        has_run = self.run_folder.is_dir() and bool(run_checkpoints(self.run_folder))
        if has_run and not (self.run_folder / CUT).is_dir():
            raise ValueError(f"{self.run_folder} holds a run that heals nothing; set another output_dir.")

    def __call__(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Train the student in place.

        Raises:
            ValueError: if the run folder holds the healing of another model.
        """
        trainer = self.train(student, self.run_folder)
        assert trainer.stage_run is not None
        self.stage = trainer.stage_run.record

    def briefly(self, steps: int) -> "BriefHealing":
        """Return the same training in `steps` steps, for the finalists of a search: its `heal_briefly`.

        The schedule is that of the recipe, compressed. Each finalist has a run folder of its own in `_finalists`, from
        which it continues after a kill; [`shrink_to_budget`] removes them at its end.

        Raises:
            ValueError: if `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"A finalist is healed for {steps} steps; heal it for at least one.")
        return BriefHealing(self, steps)

    def train(self, student: PreTrainedModel, folder: Path, steps: int | None = None) -> ContinualTrainer:
        """Train a student in place, for all steps of the recipe or for some, in a run folder of its own."""
        cut = self._write_cut(student, folder / CUT)
        configuration = read_configuration(self.recipe, self._overrides(str(cut)))
        configuration.training.output_dir = str(folder)
        if steps is not None:
            _shorten(configuration, steps)
        trainer = train_configuration(configuration)
        healed = trainer.accelerator.unwrap_model(trainer.model)
        whole = healed.merge_and_unload() if isinstance(healed, PeftModel) else healed
        student.load_state_dict(whole.state_dict())
        return trainer

    def _write_cut(self, student: PreTrainedModel, cut: Path) -> Path:
        receipt = vars(student)[ShrinkReceipt.attribute]
        if not cut.is_dir():
            side_files = find_source(self.source).folder
            save_model(student, cut, side_files=side_files, receipts={ShrinkReceipt.file_name: receipt})
        elif read_json(cut / ShrinkReceipt.file_name, f"delete {cut}") != json.loads(json.dumps(receipt)):
            raise ValueError(f"{cut.parent} holds the healing of another cut; set another output_dir.")
        return cut

    def _overrides(self, model: str) -> list[str]:
        return ["--model_name_or_path", model, "--distillation", self._distillation]


@dataclass(frozen=True)
class BriefHealing:
    """Heal finalists by a recipe; see [`RecipeHealing.briefly`].

    Args:
        healing (`RecipeHealing`): the recipe.
        steps (`int`): for each finalist.
    """

    healing: RecipeHealing
    steps: int

    def __call__(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Train a finalist in place."""
        self.healing.train(student, self.folder / _name_of(student), self.steps)

    @property
    def folder(self) -> Path:
        """The folder of the finalists' runs."""
        return self.healing.run_folder / FINALISTS

    def remove_runs(self) -> None:
        """Remove the runs of the finalists; after a kill in the middle, none looks like a run to continue."""
        old = self.folder.with_name(f".{FINALISTS}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.is_dir():
            self.folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)


def _shorten(configuration: TrainingConfiguration, steps: int) -> None:
    """Train for some steps only, report to nobody, and keep no more than the last checkpoint."""
    configuration.stage.max_tokens = None
    training = configuration.training
    training.max_steps, training.save_total_limit = steps, 1
    training.report_to, training.push_to_hub = [], False


def _name_of(student: PreTrainedModel) -> str:
    """Return the sizes that were cut, as the name of a folder."""
    receipt = vars(student)[ShrinkReceipt.attribute]
    source, sizes = receipt["source_sizes"], receipt["sizes"]
    return "_".join(f"{axis}-{size}" for axis, size in sizes.items() if size != source[axis])
