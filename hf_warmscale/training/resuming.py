"""Find the checkpoint to resume, check that it is whole, and load weights that have other names in its files."""

import json
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_warmscale.checkpoints import open_checkpoint
from hf_warmscale.checkpoints.conversion import loading_groups
from hf_warmscale.checkpoints.run_folder import read_trainer_state, run_checkpoints
from hf_warmscale.training.stage import StageRecord

MUST_CONTINUE = "must_continue"
"""In the state of a callback: without it the run would become another one."""

UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)
"""What torch, json and safetensors raise on a file that is cut off or holds something else."""


def checkpoint_to_resume(run: str, resume_from_checkpoint: str | os.PathLike[str] | bool | None) -> str | None:
    """Return the checkpoint that `train(resume_from_checkpoint=...)` means, `None` for a start from scratch.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the run has a checkpoint and none is resumed, or none and one is.
    """
    saved = run_checkpoints(run) if Path(run).is_dir() else []
    if isinstance(resume_from_checkpoint, str | os.PathLike):
        if not Path(resume_from_checkpoint).is_dir():
            there = f"the last one of {run} is {saved[-1].name}" if saved else f"{run} holds none"
            raise FileNotFoundError(f"There is no checkpoint {resume_from_checkpoint}; {there}.")
        return os.fspath(resume_from_checkpoint)
    if resume_from_checkpoint and not saved:
        raise ValueError(f"{run} holds no checkpoint to resume; start without resume_from_checkpoint.")
    if not resume_from_checkpoint and saved:
        raise ValueError(
            f"{run} already holds {saved[-1].name}; resume it with resume_from_checkpoint=True, or name another "
            "output_dir."
        )
    return str(saved[-1]) if saved else None


def refuse_damaged(checkpoint: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint with a file that cannot be read, before anything is loaded.

    Raises:
        ValueError: naming the file, what is wrong with it, and the last good checkpoint of the run.
    """
    found = _damage(Path(checkpoint))
    if found is not None:
        raise ValueError(f"{found[0]} is damaged ({found[1]}); {advice(checkpoint)}.")


def missing_files(checkpoint: str | os.PathLike[str], *, process: int, processes: int, engine: bool) -> list[str]:
    """Return the files without which a checkpoint cannot be continued exactly, and which it lacks.

    Args:
        checkpoint (`str` or `PathLike`): the folder.
        process, processes (`int`): the rank, and how many there are.
        engine (`bool`): DeepSpeed or FSDP keep weights and moments in files of their own.
    """
    folder = Path(checkpoint)
    wanted = [TRAINER_STATE_NAME, SCHEDULER_NAME] + ([] if engine else [OPTIMIZER_NAME])
    # The state of another number of processes is there, but of no use: see the warning in `missing_random_state`.
    wanted += [] if any(folder.glob("rng_state*.pth")) else [rng_file(process, processes)]
    return [name for name in wanted if not (folder / name).exists()]


def refuse_lost_callbacks(checkpoint: str | os.PathLike[str], present: Sequence[str]) -> None:
    """Refuse to continue a run without a callback that it depends on: one whose state says `MUST_CONTINUE`.

    Args:
        checkpoint (`str` or `PathLike`): the folder.
        present (`Sequence[str]`): the class names of the trainer's callbacks.

    Raises:
        ValueError: naming the callback and what it was made with.
    """
    states = (read_trainer_state(checkpoint) or {}).get("stateful_callbacks") or {}
    for name, found in states.items():
        state = found[0] if isinstance(found, list) else found  # a list where there are several of one class
        if state.get(MUST_CONTINUE) and name not in present:
            raise ValueError(
                f"{checkpoint} is of a run with a {name} ({state['args']}), and there is none now; pass it again, or "
                "begin a new stage from these weights."
            )


def rng_file(process: int, processes: int) -> str:
    """Return the name under which Trainer saves the random state of a process."""
    return "rng_state.pth" if processes == 1 else f"rng_state_{process}.pth"


def advice(checkpoint: str | os.PathLike[str]) -> str:
    """Return which checkpoint to resume instead of a bad one: the last whole one of the same run."""
    folder = Path(checkpoint)
    for other in reversed(run_checkpoints(folder.parent)):
        if other.resolve() != folder.resolve() and _damage(other) is None and (other / TRAINER_STATE_NAME).is_file():
            return f"resume {other}, the last good one"
    return "there is no other good checkpoint in its run, so start again"


def load_renamed(model: PreTrainedModel, checkpoint: str | os.PathLike[str]) -> bool:
    """Load the weights of a checkpoint if some of them have other names in its files than in the live model.

    `save_pretrained` renames, splits and prefixes tensors back to what a family was published with (experts, heads).
    Trainer loads files by the live names and leaves out what does not match, silently.

    Args:
        model (`PreTrainedModel`): of the class that was saved.
        checkpoint (`str` or `PathLike`): a folder with safetensors.

    Returns:
        `bool`: whether it loaded them; `False` leaves it to Trainer, whose way is right where all names agree.

    Raises:
        ValueError: if a tensor of the model is not there.
    """
    if not _has_safetensors(Path(checkpoint)):
        return False
    stored = open_checkpoint(checkpoint)
    # Tied weights are stored once, under the name of the other end.
    live = model.state_dict().keys() - model.all_tied_weights_keys.keys()
    if live <= stored.specs.keys():
        return False
    state: dict[str, Any] = {}
    for group in loading_groups(stored.specs, model):
        state |= group.convert({name: stored.tensor(name) for name in group.sources}, model)
    missing = live - state.keys()
    if missing:
        raise ValueError(f"{checkpoint} lacks the tensor {min(missing)} of the model; {advice(checkpoint)}.")
    # Not strict only because tied names are absent; everything else was checked above.
    model.load_state_dict(state, strict=False)
    return True


def _has_safetensors(folder: Path) -> bool:
    return (folder / SAFE_WEIGHTS_NAME).is_file() or (folder / SAFE_WEIGHTS_INDEX_NAME).is_file()


def _damage(folder: Path) -> tuple[Path, str] | None:
    """Return the first unreadable file of a checkpoint and the reason."""
    checks = {
        "*.json": lambda path: json.loads(path.read_text(encoding="utf-8")),
        "*.pt": _check_zip,
        "*.pth": _check_zip,
        "*.safetensors": _check_safetensors,
    }
    for pattern, check in checks.items():
        for path in sorted(folder.glob(pattern)):
            try:
                check(path)
            except (*UNREADABLE, zipfile.BadZipFile) as error:
                return path, " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if _has_safetensors(folder):
        try:
            open_checkpoint(folder)
        except (OSError, ValueError) as error:
            return folder, str(error).partition(";")[0].rstrip(".")
    return None


def _check_zip(path: Path) -> None:
    """See that a file of `torch.save` is complete: its table of contents stands at the end."""
    with zipfile.ZipFile(path) as archive:
        archive.infolist()


def _check_safetensors(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        file.keys()


def resumed_record(checkpoint: str | os.PathLike[str]) -> StageRecord:
    """Return the stage of a checkpoint after seeing that all of its files can be read."""
    refuse_damaged(checkpoint)
    return StageRecord.load(checkpoint)
