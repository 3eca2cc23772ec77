"""Heal the winner of a search by a recipe of `warmscale train`."""

import json
import os
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from hf_warmscale.checkpoints import run_checkpoints, save_model
from hf_warmscale.checkpoints.source import find_source
from hf_warmscale.resize import ShrinkReceipt
from hf_warmscale.staging import read_json
from hf_warmscale.training.launch import launched_processes
from hf_warmscale.training.recipe.configuration import read_configuration
from hf_warmscale.training.recipe.run import prepare_stage, train
from hf_warmscale.training.recipe.yaml_file import as_mapping
from hf_warmscale.training.stage import StageRecord

CUT = "_cut"
"""The folder of the unhealed model in the run folder. Uploads of a run leave out what begins with an underscore."""


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
        trainer = train(self.recipe, self._overrides(str(self._write_cut(student))))
        healed = trainer.accelerator.unwrap_model(trainer.model)
        whole = healed.merge_and_unload() if isinstance(healed, PeftModel) else healed
        student.load_state_dict(whole.state_dict())
        assert trainer.stage_run is not None
        self.stage = trainer.stage_run.record

    def _write_cut(self, student: PreTrainedModel) -> Path:
        cut, receipt = self.run_folder / CUT, vars(student)[ShrinkReceipt.attribute]
        if not cut.is_dir():
            side_files = find_source(self.source).folder
            save_model(student, cut, side_files=side_files, receipts={ShrinkReceipt.file_name: receipt})
        elif read_json(cut / ShrinkReceipt.file_name, f"delete {cut}") != json.loads(json.dumps(receipt)):
            raise ValueError(f"{self.run_folder} holds the healing of another cut; set another output_dir.")
        return cut

    def _overrides(self, model: str) -> list[str]:
        return ["--model_name_or_path", model, "--distillation", self._distillation]
