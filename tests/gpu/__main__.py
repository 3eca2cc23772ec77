"""Check this package on one GPU: `python -m tests.gpu --output gpu.json`.

The checks run in a process of their own. Where one fails, crashes or hangs, another process goes on with the next, so
that it costs that check alone. A line says how each ended; the JSON of all goes to standard output and to the file.
The exit code is 1 if a check failed. Models are random and no network is used. `--only` names checks;
`--device cpu --tiny` tries them without a GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hf_warmscale.checkpoints import write_json
from hf_warmscale.cli.env import PACKAGES, installed
from hf_warmscale.studies.provenance import commit_of, made_with
from tests.gpu import engines, forward, speed, training, weights
from tests.gpu.registry import CHECKS, Machine, record

GROUPS = (forward, weights, training, engines, speed)
"""The modules of the checks, in the order in which these run."""

NAMES = [name for group in GROUPS for name in CHECKS if CHECKS[name].__module__ == group.__name__]
ROOT = Path(__file__).parents[2]
MINUTES = 8.0
CHECK_SECONDS = 150.0
"""The most that one check may take."""


def main(given: list[str] | None = None) -> int:
    """Run the checks, print and write the record."""
    arguments = parse(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA GPU here; try the checks with --device cpu --tiny.", file=sys.stderr)
        return 2
    if arguments.records:
        return run_here(arguments)
    result = run_all(arguments)
    print(json.dumps(result, indent=2))
    if arguments.output:
        write_json(arguments.output, result)
    return int(any(each["status"] == "failed" for each in result["checks"]))


def parse(given: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="CHECK", help=", ".join(NAMES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="with models of a few thousand weights")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="what has not begun by then fails")
    parser.add_argument("--records", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def run_here(arguments: argparse.Namespace) -> int:
    """Run checks in this process up to the first that fails: an error may leave the device in any state."""
    # With its index, as tensors name it.
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    for name in arguments.only:
        found = record(name, Machine(device, arguments.tiny))
        write_json(arguments.records / f"{name}.json", found)
        if found["status"] == "failed":
            return 1
    return 0


def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every check and return the record of all."""
    began, checks = time.monotonic(), list[dict[str, Any]]()
    while len(checks) < len(arguments.only):
        left = 60 * arguments.minutes - (time.monotonic() - began)
        checks += run_apart(arguments.only[len(checks) :], arguments, left)
    versions = {package: installed(package) for package in (*PACKAGES, "flash-attn", "kernels", "triton")}
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    about = {"device": device, "cuda": torch.version.cuda, "versions": versions, **made_with(commit_of(ROOT))}
    return {**about, "seconds": round(time.monotonic() - began, 1), "checks": checks}


def run_apart(names: list[str], arguments: argparse.Namespace, left: float) -> list[dict[str, Any]]:
    """Run checks in another process until one fails or the seconds are over; return the records, at least one."""
    if left <= 0:
        return [ended(name, f"It was not begun within {arguments.minutes:g} minutes.", 0.0) for name in names]
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.gpu", "--device", arguments.device, "--records", folder]
        command += [*(["--tiny"] if arguments.tiny else []), "--only", *names]
        log, variables = Path(folder, "log"), environment(arguments.device)
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=file, stderr=file, start_new_session=True
            )
            found = watch(process, Path(folder), names, time.monotonic() + left)
        if found[-1]["status"] == "failed":
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
    return found


def watch(process: subprocess.Popen[bytes], folder: Path, names: list[str], deadline: float) -> list[dict[str, Any]]:
    """Collect the records that a process writes, and stop it where one takes too long, or the user interrupts."""
    found, since = list[dict[str, Any]](), time.monotonic()
    try:
        while len(found) < len(names):
            code, path, spent = process.poll(), folder / f"{names[len(found)]}.json", time.monotonic() - since
            if path.is_file():
                found.append(say(json.loads(path.read_text(encoding="utf-8"))))
                since = time.monotonic()
            elif code is not None and found and found[-1]["status"] == "failed":
                break
            elif code is not None:
                return [*found, ended(path.stem, f"Its process ended with {code}.", spent)]
            elif spent > CHECK_SECONDS or time.monotonic() > deadline:
                return [*found, ended(path.stem, f"It was stopped after {spent:.0f} s.", spent)]
            else:
                time.sleep(0.1)
        return found
    finally:
        stop(process)


def ended(name: str, error: str, seconds: float) -> dict[str, Any]:
    """Return the record of a check that could not write its own."""
    return say({"name": name, "status": "failed", "error": error, "seconds": round(seconds, 2), "figures": {}})


def say(found: dict[str, Any]) -> dict[str, Any]:
    """Print how a check ended."""
    remark = found.get("error") or found.get("reason") or ""
    print(f"{found['status']:<8}{found['seconds']:>7.1f} s  {found['name']}  {remark}", file=sys.stderr, flush=True)
    return found


def environment(device: str) -> dict[str, str]:
    """Return the variables of a check: no network, and one device or none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if device == "cuda" else ""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": visible}


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that still runs, and what it has started: a launcher passes the first signal on to its ranks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


if __name__ == "__main__":
    sys.exit(main())
