"""What the scripts of committed studies share: their options, a quiet process, and the choice of runs."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_warmscale.studies.plan import PlannedRun


@dataclass(frozen=True)
class StudyOptions:
    """The options of a script.

    Args:
        corpora (`Path`): the folder of the text.
        work (`Path`): for rows and checkpoints.
        output (`Path`): for the results of this study alone.
        only (`tuple[str, ...]`): parts of the names of the runs that are wanted.
        list (`bool`): show the runs and stop.
        smoke (`bool`): leave almost no budget.

    Example:

    ```python
    >>> words = ["--corpora", "text", "--work", "work", "--output", "out"]
    >>> study_options("A study.", words, quiet=False).smoke
    False
    ```
    """

    corpora: Path
    work: Path
    output: Path
    only: tuple[str, ...]
    list: bool
    smoke: bool


def study_options(description: str | None, words: Sequence[str] | None = None, *, quiet: bool = True) -> StudyOptions:
    """Parse the options of a script.

    Args:
        description (`str`): for `--help`: the docstring of the script.
        words (`Sequence[str]`, *optional*): the options; by default those of the command line.
        quiet (`bool`): make this process one of a study: one thread, no progress bars of transformers and datasets.

    Example:

    ```python
    >>> options = study_options(
    ...     "A study.", ["--corpora", "text", "--work", "work", "--output", "out", "--list"], quiet=False
    ... )
    >>> options.list
    True
    ```
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a folder for this study alone")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names; runs that they need come along")
    parser.add_argument("--list", action="store_true", help="show what there is to run, and what has run")
    parser.add_argument("--smoke", action="store_true", help="almost no budget")
    arguments = vars(parser.parse_args(words))
    if quiet:
        _quieten()
    return StudyOptions(**{**arguments, "only": tuple(arguments["only"])})


def wanted_runs(plan: Sequence[PlannedRun], parts: Sequence[str]) -> list[PlannedRun]:
    """Return the runs whose name holds one of the parts, with all that they wait for, in the order of the plan.

    Example:

    ```python
    >>> wanted_runs([PlannedRun("base"), PlannedRun("grown", after=("base",)), PlannedRun("other")], ["grown"])
    [PlannedRun(name='base', content={}, after=()), PlannedRun(name='grown', content={}, after=('base',))]

    ```
    """
    runs = {run.name: run for run in plan}
    chosen = {name for name in runs if any(part in name for part in parts)}
    while needed := {other for name in chosen for other in runs[name].after if other in runs} - chosen:
        chosen |= needed
    return [run for run in plan if run.name in chosen]


def listing(plan: Sequence[PlannedRun], folder: Path) -> str:
    """Return a line for each run: whether its result is stored in the folder, and its name.

    Args:
        plan (`Sequence[PlannedRun]`): the runs.
        folder (`Path`): of the study.

    Example:

    ```python
    >>> print(listing([PlannedRun("seed-0")], Path("other-results")))
    to run  seed-0
    ```
    """
    stored = {run.name: (folder / f"{run.name}.json").is_file() for run in plan}
    return "\n".join(f"{'stored' if there else 'to run'}  {name}" for name, there in stored.items())


def _quieten() -> None:
    import torch
    from datasets import disable_progress_bars
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    disable_progress_bars()
