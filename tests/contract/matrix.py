"""Every verb on every broken input: what it says, and whether it left everything as it was.

Prints the matrix: python -m tests.contract.matrix
"""

import contextlib
import io
import os
import re
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_warmscale.cli import main
from hf_warmscale.report import markdown_table
from tests.cli.workspace import RECIPE, make_workspace
from tests.contract.inputs import CONFIGS, FOLDERS, INPUTS, NAMES, OUTPUTS, TOKENIZERS, WEIGHTS
from tests.hub.server import TOKEN

STUDY = "--data packed --output {out} --widths 32 64 --steps 1 --seeds 1 --rules completep"
VERBS = {
    "grow": "grow {model} {out} --hidden-size 64",
    "shrink": "shrink {model} {out} --intermediate-size 32",
    "train": "train stage.yaml --model_name_or_path {model} --output_dir {out}",
    "average": "average {run} --output {out}",
    "merge": "merge model {model} --output {out}",
    "merge --eval-data": "merge model {model} --output {out} --eval-data held-out.jsonl --trials 2",
    "mup explain": "mup explain {model}",
    "mup check": f"mup check {{model}} {STUDY} --lr 0.01",
    "mup transfer": f"mup transfer {{model}} {STUDY} --log2-lrs -9 -8 -7",
    "mup export": "mup export {model} {out}",
    "data pack": "data pack train.jsonl {out} --tokenizer {model} --sequence-length 32",
    "data extend": "data extend train.jsonl {out} --model {model} --new-tokens 8",
    "push": "push {model} me/model",
}
"""What is typed; `{run}` is a run whose last checkpoint is the broken model."""

READS_CONFIG, READS_TOKENIZER, NO_OUTPUT = "reads the config alone", "reads the tokenizer alone", "writes no output"
EMPTIED = ("empty folder", "adapter folder", "GGUF")
KEEPS_TOKENIZER = ("grow", "shrink", "mup export", "push", "data pack")
CONFIG_ALONE = ("mup explain", "mup check", "mup transfer")
NO_TOKENIZER = ("grow", "shrink", "train", "average", "merge", *CONFIG_ALONE, "mup export", "push")

FINE: dict[tuple[str, str], str] = {
    # Opening weights and tokenizer would cost minutes on a large model and change nothing that is printed.
    **{(verb, what): READS_CONFIG for verb in CONFIG_ALONE for what in (*WEIGHTS, *TOKENIZERS)},
    # Rows need a tokenizer and no model: packing works from a folder of tokenizer files, and must go on doing so.
    **{("data pack", what): READS_TOKENIZER for what in (*CONFIGS, *WEIGHTS) if what not in EMPTIED},
    # A model without a tokenizer is whole: many are trained on ids alone.
    **{(verb, "no tokenizer"): "needs no tokenizer" for verb in NO_TOKENIZER},
    # It is copied, and no id of it is used; a table that is too small is mended by growing it, so growing takes it.
    **{(verb, what): "takes the tokenizer as it is" for verb in KEEPS_TOKENIZER for what in TOKENIZERS},
    **{(verb, "ids beyond the table"): "takes the tokenizer as it is" for verb in ("average", "merge")},
    # There is nothing that could be written to.
    **{(verb, what): NO_OUTPUT for verb in ("mup explain", "push") for what in OUTPUTS},
    # The checkpoints of a run are in a folder: a name with a revision is one model, and one model has no average.
    **{("average", what): "takes a folder of this machine" for what in NAMES},
    # Others load it with the library that wrote it; what this package cannot compute with it can still send.
    **{("push", what): "a quantized model may be pushed" for what in ("GPTQ", "bitsandbytes")},
    # transformers loads it whole and trains its text model; growing, which needs the text model alone, says so.
    **{(verb, "composite"): "takes the text model as a part of it" for verb in ("train", "data extend", "push")},
    # Its own folder of an earlier call: the command continues there, which is what it promises.
    **{(verb, "output not empty"): "goes on in its own folder" for verb in ("train", "mup check", "mup transfer")},
    # The same number of ids, and a model does not say which tokenizer it was trained with.
    ("data extend", "another tokenizer"): "cannot be told from its own",
}
del FINE["push", "ids beyond the table"]  # what is published must work for whoever loads it
"""Cells in which there is nothing to refuse, each with the reason."""

SAID = re.compile(r"(?:Error|Traceback): [^\r\n\x1b]*")
"""An error on standard error, maybe behind a progress bar."""

PUSHED = "the Hub cannot be reached"
"""The last thing that a push says without a network: everything before was accepted."""

NOT_RUN = (READS_CONFIG, READS_TOKENIZER, NO_OUTPUT, "takes a folder of this machine")

KEPT = {
    ("train", "full disk"): "out/_partial/",  # the next save sweeps it; the checkpoints before it stay whole
    ("merge --eval-data", "full disk"): "out.journal.log",  # the trials so far, hours of work on a large model
    ("mup check", "full disk"): "out/",  # the runs so far, one file each
    ("mup transfer", "full disk"): "out/",  # likewise
}
"""What a command keeps on purpose when it cannot go on: the same command goes on from there, or sweeps it."""


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Args:
        code (`int` or `None`): its exit code, `None` after an error that nobody caught.
        sentences (`list[str]`): the lines of standard error, without progress bars and warnings.
        changed (`list[str]`): files that were made, changed or removed.
    """

    code: int | None
    sentences: list[str]
    changed: list[str]

    @property
    def is_refusal(self) -> bool:
        """One sentence, exit code 2, everything as it was."""
        return self.code == 2 and len(self.sentences) == 1 and not self.changed

    @property
    def text(self) -> str:
        """The cell of the matrix."""
        if self.is_refusal:
            return self.sentences[0].removeprefix("Error: ")
        return (
            f"FAULT: exit {self.code}, {len(self.sentences)} lines, changed {self.changed[:2]}: {self.sentences[-1:]}"
        )


class Contract:
    """A folder with whole and broken models, in which the cells are run.

    Args:
        folder (`Path`): an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_workspace(folder)
        recipe = RECIPE.replace("output_dir: run", "output_dir: whole-run")
        (folder / "stage.yaml").write_text(recipe, encoding="utf-8")
        with self._inside():
            assert main(["train", "stage.yaml"]) == 0
        for what, make in FOLDERS.items():
            model = folder / _slug(what)
            shutil.copytree(folder / "model", model)
            make(model)
            run = folder / f"run-{_slug(what)}"
            shutil.copytree(folder / "whole-run", run)
            make(max(run.glob("checkpoint-*")))
        (folder / "full").mkdir()
        (folder / "full" / "notes.txt").write_text("mine", encoding="utf-8")

    def run(self, verb: str, what: str) -> Outcome:
        """Run one cell."""
        model = NAMES.get(what, "model" if what in OUTPUTS else _slug(what))
        if (verb, what) == ("push", "no network"):
            model = "model"
        run = "whole-run" if what in OUTPUTS else f"run-{_slug(what)}"
        out = {"read-only output": "/proc/self/out", "output not empty": "full"}.get(what, "out")
        command = VERBS[verb].format(model=model, run=run, out=out).split()
        before = written_below(self.folder)
        printed = io.StringIO()
        disk = full_disk() if what == "full disk" else contextlib.nullcontext()
        quiet = contextlib.redirect_stdout(io.StringIO())
        with self._inside(), contextlib.redirect_stderr(printed), quiet, disk:
            code = _code(command)
        after = written_below(self.folder)
        kept = KEPT.get((verb, what), "\0")
        touched = (name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        changed = sorted(name for name in touched if not name.startswith(kept))
        for made in after.keys() - before.keys():
            (self.folder / made).unlink()
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        said = [line.strip() for line in SAID.findall(printed.getvalue())]
        return Outcome(code, said, changed)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        before = Path.cwd()
        os.chdir(self.folder)
        os.environ["HF_TOKEN"] = TOKEN
        try:
            with warnings.catch_warnings():
                yield
        finally:
            os.chdir(before)
            os.environ.pop("HF_TOKEN", None)


def written_below(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Which file is where and when it was written: to read some hundred models twice a cell would take longer."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            stat = path.stat()
            found[str(path.relative_to(folder))] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def _code(command: list[str]) -> int | None:
    """Return the exit code of a command, or `None` after an error that it did not turn into a sentence."""
    try:
        return main(command)
    except Exception as error:
        print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
        return None


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Limit the size of a file: the system refuses a write beyond it as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def cells() -> list[tuple[str, str]]:
    """Return every verb with every input."""
    return [(verb, what) for verb in VERBS for what in INPUTS]


def cell(contract: Contract, verb: str, what: str) -> str:
    """Return what the matrix says."""
    reason = FINE.get((verb, what))
    if reason in NOT_RUN:
        return f"({reason})"
    outcome = contract.run(verb, what)
    if reason is None:
        return outcome.text
    return f"({reason})" if outcome.code == 0 or PUSHED in outcome.text else outcome.text


def is_fault(verb: str, what: str, text: str) -> bool:
    """Tell whether a cell is none of: a refusal of the input, a success with its reason."""
    wrong_reason = PUSHED in text and what != "no network"
    return text.startswith("FAULT") or wrong_reason or not text


def _slug(what: str) -> str:
    return what.replace(" ", "-").lower()


TITLE = """# Every verb on every broken input

Printed by `python -m tests.contract.matrix`; in brackets: the reason why there is nothing to refuse. The paths of the
temporary folder and the number of the process are left out."""


def print_matrix() -> None:
    """Print one table for each verb."""
    print(TITLE)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        with contextlib.redirect_stdout(sys.stderr):  # what training prints is no cell
            contract = Contract(work)
        for verb in VERBS:
            with contextlib.redirect_stdout(sys.stderr):
                cells = {what: cell(contract, verb, what) for what in INPUTS}
            rows = [{"input": what, "answer": _anywhere(text, work)} for what, text in cells.items()]
            print(f"\n## {verb}\n\n{markdown_table(rows).rstrip()}", flush=True)


def _anywhere(text: str, work: Path) -> str:
    """Return a cell as it would be in another folder and another process."""
    return text.replace(f"{work}/", "").replace(f"/proc/{os.getpid()}", "/proc/N")


if __name__ == "__main__":
    print_matrix()
