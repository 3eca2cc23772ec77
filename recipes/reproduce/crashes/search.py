"""Kill a merge search with SIGKILL again and again, start it again each time, and store what came of it.

    python recipes/reproduce/crashes/search.py

Runs the test that does so, and stores what it printed, with its provenance, in `results/search.json`.
"""

import re
import subprocess
import sys
from pathlib import Path

from hf_warmscale.studies import write_result

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TEST = "tests/merging/search/test_resume.py::test_a_search_killed_again_and_again_tries_the_same_points"
KILLED = re.compile(r"seed of the kills: (\d+).*?(\d+) kills", re.DOTALL)


def main() -> None:
    """Run the test; exit with 1 if it fails, and store nothing."""
    command = [sys.executable, "-m", "pytest", TEST, "-s", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    found = KILLED.search(done.stdout)
    if done.returncode or found is None:
        raise SystemExit(f"The killed search differs from the whole one:\n{done.stdout}")
    seed, kills = map(int, found.groups())
    result = {"test": TEST, "seed of the kills": seed, "kills": kills, "same trials to the last bit": True}
    write_result(HERE / "results" / "search.json", result, code=HERE)
    print(f"{kills} kills (seed {seed}), the same trials")


if __name__ == "__main__":
    main()
