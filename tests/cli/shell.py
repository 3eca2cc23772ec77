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
    assert_sentence(done.returncode, (done.stdout, done.stderr), *words)


def assert_sentence(code: int, printed: tuple[str, str], *words: str) -> None:
    """The same of `main` in this process: its exit code, and what it printed on standard output and error.

    A progress bar that had begun may stand before the sentence.
    """
    out, err = printed
    assert code == 2, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "?"))
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, to see that nothing was written or changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
