"""A study in a folder: one JSON per run, written as the run ends, and nothing of another study beside it."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_warmscale.checkpoints import write_json
from hf_warmscale.staging import read_json
from hf_warmscale.studies.provenance import SHORT, commit_of, content_hash, made_with, software

IDENTITY = "study.json"
FORMAT_VERSION = 1
REMEDY = "delete it to run it again"
SHOWN = 3
"""Differences that a refusal names."""


@dataclass(frozen=True)
class Study:
    """An open study.

    Args:
        folder (`Path`): where `study.json` and the runs lie.
        config (`Mapping[str, Any]`): what all runs depend on, as plain values.
        tokens (`str`, *optional*): hash of the token stream, see [`tokens_hash`].
        commit (`str`, *optional*): git commit of the code that runs it.

    Example:

    ```python
    >>> study = open_study("seeds", {"steps": 100})
    >>> run_all(study, [PlannedRun("seed-0", {"seed": 0})], lambda run: {"loss": 3.5})
    >>> [run["loss"] for run in read_runs("seeds")]
    [3.5]
    ```
    """

    folder: Path
    config: Mapping[str, Any]
    tokens: str | None
    commit: str | None

    def path(self, name: str) -> Path:
        """Return the JSON of a run; its name may have parts, as in `base/seed-0`."""
        return self.folder / f"{name}.json"

    def has(self, name: str) -> bool:
        """Tell whether a run has ended and is stored, even if it diverged."""
        return self.path(name).is_file()

    def result(self, name: str) -> dict[str, Any]:
        """Return what a run left.

        Raises:
            FileNotFoundError: if it has not run.
            ValueError: if its file is damaged.
        """
        return read_json(self.path(name), REMEDY)

    def attempt(self, name: str, work: Callable[[], Mapping[str, Any]], content: Mapping[str, Any]) -> bool:
        """Run and store one run; return `False`, and do nothing, where it is stored or another process runs it.

        Numbers that are not finite are stored as null, and the run as one that diverged.

        Args:
            name (`str`): of the run.
            work (`Callable`): returns what to store; whatever it raises, nothing is stored.
            content (`Mapping[str, Any]`): what the run is; stored before its result.
        """
        with self._claimed(name) as free:
            # Looked at again under the lock: another process may have stored the run since the plan was read.
            if not free or self.has(name):
                return False
            result, diverged = without_infinities({**work()})
            write_json(self.path(name), {**content, **result, "diverged": diverged, "provenance": self.provenance()})
        return True

    def provenance(self) -> dict[str, Any]:
        """Return what every run of this study in this process is stored with."""
        return {**made_with(self.commit), "config": content_hash(self.config), "tokens": self.tokens}

    def summary(self, names: Sequence[str]) -> str:
        """Return how many of the named runs are stored, and which of them diverged.

        Example:

        ```python
        >>> study.summary(["lr-0.01", "lr-0.1"])
        '2 of 2 runs done, 1 diverged (lr-0.1)'
        ```
        """
        done = [name for name in names if self.has(name)]
        diverged = [name for name in done if self.result(name).get("diverged")]
        lost = f", {len(diverged)} diverged ({', '.join(diverged)})" if diverged else ""
        return f"{len(done)} of {len(names)} runs done{lost}"

    @contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        """Hold a run, so that of two processes only one makes it; the system frees the lock of a killed process."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.running.lock")
        try:
            # No waiting: whoever does not get the run makes another one.
            with FileLock(lock, timeout=0):
                try:
                    yield True
                finally:
                    # Removed while it is held: whoever waits sees that the file is gone and makes a new one.
                    lock.unlink(missing_ok=True)
        except Timeout:
            yield False


def open_study(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    tokens: str | None = None,
    code: Path | None = None,
) -> Study:
    """Open the study of a folder, or begin one there.

    Args:
        folder (`str` or `PathLike`): for one study; made if need be.
        config (`Mapping[str, Any]`): what its runs depend on, as plain values; no paths.
        tokens (`str`, *optional*): hash of the token stream.
        code (`Path`, *optional*): the folder of the script that runs the study, whose git commit is recorded; by
            default that of this package.

    Raises:
        ValueError: if the folder holds a study with another config, other tokens, or other versions of this package,
            torch or transformers (each difference is named with both values), or results of an unknown study.

    Example:

    ```python
    >>> study = open_study("results", {"steps": 500, "lrs": [0.01, 0.02]}, tokens=tokens_hash([ids]))
    >>> study.attempt("lr-0.01", lambda: {"loss": train(0.01)}, {"lr": 0.01})
    True
    ```
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(config))  # tuples become lists, as in the file
    wanted = {"format_version": FORMAT_VERSION, "config": plain, "tokens": tokens, "software": software()}
    identity = folder / IDENTITY
    if identity.is_file():
        _refuse_another(folder, _stored_identity(identity), wanted)
    elif any(folder.rglob("*.json")):  # runs of an unknown version, config and corpus: none may be taken for ours
        raise ValueError(f"The folder {folder} holds results and no {IDENTITY}; name a new folder.")
    else:
        write_json(identity, wanted)
    return Study(folder, plain, tokens, _commit(code))


def write_result(path: str | os.PathLike[str], content: Mapping[str, Any], *, code: Path | None = None) -> None:
    """Write a result that is not a run of a study, such as a measured table, with its provenance.

    Args:
        path (`str` or `PathLike`): of the JSON; what is there is replaced.
        content (`Mapping[str, Any]`): plain values; null stands for what is not finite.
        code (`Path`, *optional*): the folder of the script, as for [`open_study`].

    Example:

    ```python
    >>> write_result("table.json", {"rows": [1, 2]})
    ```
    """
    finite, _ = without_infinities({**content})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**finite, "provenance": made_with(_commit(code))})


def read_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the stored runs directly inside a folder, in the order of their file names.

    Runs that were stored before there was provenance are returned as they are.

    Args:
        folder (`str` or `PathLike`): of a study, or a folder in it.

    Example:

    ```python
    >>> [run["loss"] for run in read_runs("losses")]
    [3.5]
    ```
    """
    return [read_json(path, REMEDY) for path in sorted(Path(folder).glob("*.json")) if path.name != IDENTITY]


def differences(stored: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Yield how two plain values differ, each difference in words and with both values.

    Example:

    ```python
    >>> list(differences({"task": {"steps": 500}}, {"task": {"steps": 400}}))
    ['task.steps is 500 there and 400 here']

    ```
    """
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        for key in dict.fromkeys([*stored, *wanted]):
            yield from differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
    elif stored != wanted:
        yield f"{name} is {_shown(stored)} there and {_shown(wanted)} here"


def without_infinities(content: Any) -> tuple[Any, bool]:
    """Return plain values with null for every number that is not finite, and whether there was one."""
    if isinstance(content, Mapping):
        pairs = {key: without_infinities(value) for key, value in content.items()}
        return {key: value for key, (value, _) in pairs.items()}, any(lost for _, lost in pairs.values())
    if isinstance(content, list | tuple):
        values = [without_infinities(value) for value in content]
        return [value for value, _ in values], any(lost for _, lost in values)
    if isinstance(content, float) and not math.isfinite(content):
        return None, True
    return content, False


def _commit(code: Path | None) -> str | None:
    return commit_of() if code is None else commit_of(code) or commit_of()


def _refuse_another(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = list(differences(stored, wanted))
    if found:
        named = ", ".join(found[:SHOWN]) + (f", and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
        raise ValueError(f"The folder {folder} holds the runs of another study: {named}; name a new folder.")


def _stored_identity(path: Path) -> dict[str, Any]:
    """Read `study.json`; before there were versions it held the config alone."""
    content = read_json(path, "name a new folder")
    found = content.get("format_version")
    if found is None:
        # With no software and no tokens it differs from every study of today: such a folder can be read, not
        # continued.
        return {"format_version": FORMAT_VERSION, "config": content, "tokens": None, "software": {}}
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path} has the format version {found}, and this version of hf_warmscale reads {FORMAT_VERSION}; update "
            "it, or name a new folder."
        )
    return content


def _shown(value: object) -> str:
    """Write a value briefly; a hash is known by its beginning."""
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:SHORT]}..."
