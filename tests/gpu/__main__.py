"""Check this package on one GPU: `python -m tests.gpu --output gpu.json`.

Every check runs in a process of its own, so that a crash, a hang or a full device costs that check alone. A line says
how each ended; the JSON of all goes to standard output and to the file; the exit code is 1 if a check failed. Models
are random and no network is used. `--only` names checks; `--device cpu --tiny` tries them without a GPU.
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
    if arguments.record:
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
    parser.add_argument("--record", choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def run_here(arguments: argparse.Namespace) -> int:
    """Run one check in this process and write its record."""
    # With its index, as tensors name it.
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    machine = Machine(device, arguments.tiny)
    write_json(arguments.output, record(arguments.record, machine))
    return 0


def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every check in a process of its own and return the record of all."""
    began, checks = time.monotonic(), list[dict[str, Any]]()
    for name in arguments.only:
        left = 60 * arguments.minutes - (time.monotonic() - began)
        checks.append(found := run_apart(name, arguments, min(left, CHECK_SECONDS)))
        remark = found.get("error") or found.get("reason") or ""
        print(f"{found['status']:<8}{found['seconds']:>7.1f} s  {name}  {remark}", file=sys.stderr, flush=True)
    versions = {package: installed(package) for package in (*PACKAGES, "flash-attn", "kernels", "triton")}
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    about = {"device": device, "cuda": torch.version.cuda, "versions": versions, **made_with(commit_of(ROOT))}
    return {**about, "seconds": round(time.monotonic() - began, 1), "checks": checks}


def run_apart(name: str, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a check in a process of its own for so many seconds at most, and return its record."""
    if seconds <= 0:
        return ended(name, f"It was not begun within {arguments.minutes:g} minutes.", 0.0)
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        path, log = Path(folder, "record.json"), Path(folder, "log")
        command = [sys.executable, "-m", "tests.gpu", "--record", name, "--output", str(path)]
        command += ["--device", arguments.device, *(["--tiny"] if arguments.tiny else [])]
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(arguments.device), stdout=file, stderr=file, start_new_session=True
            )
            code = wait(process, seconds)
        spent = round(time.monotonic() - began, 1)
        found = json.loads(path.read_text()) if path.is_file() else ended(name, reason(code, seconds), spent)
        if found["status"] == "failed":
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
    return {**found, "seconds": spent}


def ended(name: str, error: str, seconds: float) -> dict[str, Any]:
    """Return the record of a check that could not write its own."""
    return {"name": name, "status": "failed", "error": error, "seconds": seconds, "figures": {}}


def reason(code: int | None, seconds: float) -> str:
    """Return why a process has left no record."""
    return f"It was stopped after {seconds:.0f} s." if code is None else f"Its process ended with {code}."


def environment(device: str) -> dict[str, str]:
    """Return the variables of a check: no network, and one device or none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if device == "cuda" else ""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": visible}


def wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return the exit code of a process, `None` if it had to be stopped."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also where the user interrupts
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that still runs, and what it has started: a launcher passes the first signal on to its ranks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


if __name__ == "__main__":
    sys.exit(main())
