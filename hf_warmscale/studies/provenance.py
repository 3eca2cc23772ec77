"""What a result was made with: the code, the libraries, the machine, the configuration and the tokens."""

import hashlib
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGE = Path(__file__).parents[1]
DISTRIBUTION = "hf-warmscale"
SHORT = 12
"""Hexadecimal digits of a hash that is shown."""


def content_hash(content: object) -> str:
    """Return a hash of plain values; the order of keys does not count.

    Example:

    ```python
    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True

    ```
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tokens_hash(parts: Iterable[NDArray[Any]]) -> str:
    """Return a hash of token ids, whatever integer type they are stored in.

    Args:
        parts (`Iterable[NDArray]`): arrays of ids, any shape; the order of the parts and their lengths count.

    Example:

    ```python
    >>> import numpy as np
    >>> tokens_hash([np.arange(4)]) == tokens_hash([np.arange(4, dtype=np.int32)])
    True
    ```
    """
    digest = hashlib.sha256()
    for part in parts:
        ids = np.ascontiguousarray(part, dtype=np.int64)
        # The length separates the parts: [1, 2] + [3] and [1] + [2, 3] must not collide.
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(ids.tobytes())
    return digest.hexdigest()


@cache
def software() -> dict[str, str]:
    """Return the versions that decide a result: of this package, with a hash of its code, and of the libraries.

    The hash tells apart two states of a checkout that share a version, and finds a wheel and a checkout of one commit
    to be the same.
    """
    own = f"{_version(DISTRIBUTION)} (code {package_hash()[:SHORT]})"
    return {"hf_warmscale": own, **{name: _version(name) for name in ("torch", "transformers")}}


@cache
def package_hash() -> str:
    """Return a hash of the source files of this package."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        # Null bytes separate name and content, which hold none.
        digest.update(str(path.relative_to(PACKAGE).as_posix()).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def commit_of(folder: Path = PACKAGE) -> str | None:
    """Return the git commit of the code in a folder, with `+changes` if files differ from it; `None` if unknown.

    An installed package has no repository; then the commit is the one that pip recorded, if it installed from git.
    """
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:  # a package installed below someone's repository
        return _installed_commit()
    commit = _git(folder, "rev-parse", "HEAD")
    return f"{commit}+changes" if commit and _git(folder, "status", "--porcelain", "--", ".") else commit


def machine_kind() -> str:
    """Return the kind of machine, which decides the last digits of a result; it holds no host name and no path.

    Example:

    ```python
    >>> machine_kind()  # doctest: +SKIP
    'x86_64, AVX512, 1 thread'

    ```
    """
    import torch  # seconds to import, and a reader of results does not need it

    threads = torch.get_num_threads()
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)}"
    if not torch.accelerator.is_available():
        return cpu
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    name = torch.cuda.get_device_name() if kind.type == "cuda" else kind.type
    return f"{name} ({cpu})"


def made_with(commit: str | None) -> dict[str, Any]:
    """Return the provenance of a result of this process: software, the commit of its code, and the machine."""
    return {"software": software(), "commit": commit, "machine": machine_kind()}


def provenance_line(results: Iterable[Mapping[str, Any]], *, mixed: bool = False) -> str:
    """Return one line that says what the results of a study were made with.

    Args:
        results (`Iterable[Mapping]`): stored runs, see [`read_runs`].
        mixed (`bool`): allow results of several versions, and list them with their counts.

    Raises:
        ValueError: if the results are of several versions and `mixed` is false.

    Example:

    ```python
    >>> provenance_line([{"loss": 3.1}])
    '1 run without stored provenance'

    ```
    """
    counts = Counter(_in_words(result.get("provenance")) for result in results)
    if len(counts) > 1 and not mixed:
        raise ValueError(
            f"The runs are of {len(counts)} versions ({'; '.join(sorted(counts))}); report each alone, or say in the "
            "report that they are mixed."
        )
    return "; ".join(f"{count} run{'s' * (count > 1)} {words}" for words, count in sorted(counts.items()))


def _in_words(provenance: Mapping[str, Any] | None) -> str:
    if provenance is None:
        return "without stored provenance"
    versions = ", ".join(f"{name} {number}" for name, number in provenance["software"].items())
    commit = provenance.get("commit")
    return f"with {versions}" + (f", commit {commit[:SHORT]}" if commit else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _installed_commit() -> str | None:
    try:
        recorded = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    commit = json.loads(recorded).get("vcs_info", {}).get("commit_id") if recorded else None
    return commit if isinstance(commit, str) else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, no repository
        return None
    return done.stdout.strip()
