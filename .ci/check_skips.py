"""Fail if a test was skipped that is not on the list. Says nothing if all is well.

Usage: check_skips.py JUNIT_XML ALLOWED
"""

import sys
from fnmatch import fnmatch
from pathlib import Path
from xml.etree import ElementTree


def skipped(report: Path) -> dict[str, str]:
    """Return the skipped tests of a JUnit report, as `file::test`, with their reasons."""
    cases = ElementTree.parse(report).iter("testcase")
    marks = ((case, case.find("skipped")) for case in cases)
    return {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": mark.get("message", "")
        for case, mark in marks
        if mark is not None
    }


def allowed(path: Path) -> list[str]:
    """Return the globs of the list."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


def main(report: str, listed: str) -> int:
    """Compare, and name what should not have been skipped."""
    globs = allowed(Path(listed))
    wrong = {
        test: why for test, why in skipped(Path(report)).items() if not any(fnmatch(test, glob) for glob in globs)
    }
    for test, why in wrong.items():
        print(f"Skipped, and not on {listed}: {test} ({why})", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
