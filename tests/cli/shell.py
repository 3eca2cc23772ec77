"""Type a command as a user does: another process, a real shell's exit code, what is printed."""

import os
import subprocess
import sys
from pathlib import Path

Done = subprocess.CompletedProcess[str]

COMMAND = [sys.executable, "-m", "hf_warmscale"]


def warmscale(*arguments: object, cwd: Path, **environment: str) -> Done:
    """Run the command line in a folder, with extra environment variables."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def assert_refused(done: Done, *words: str) -> None:
    """One sentence on standard error that holds these words, exit code 2, nothing on standard output."""
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "?"))
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"
    assert done.stdout == ""


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, to see that nothing was written or changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
