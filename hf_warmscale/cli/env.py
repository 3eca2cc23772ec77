"""`warmscale env`: versions and hardware for a bug report, without paths or user names."""

import os
import platform
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version

from hf_warmscale.cli.verb import Verb

NOT_INSTALLED = "not installed"

PACKAGES = (
    "hf-warmscale",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "peft",
    "optuna",
    "trl",
    "deepspeed",
    "lm-eval",
)
"""Packages whose version changes what a run does."""

FOR_GPU = {"deepspeed": "for the ZeRO recipes", "flash-attn": "for flash_attention_2; sdpa works without it"}
"""Packages that only GPU work needs, and what for."""


def installed(package: str) -> str:
    """Return the version of a package without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def accelerator() -> str:
    """Return the accelerators that torch sees."""
    import torch

    if not torch.accelerator.is_available():
        return "none"
    device = torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(device)
    return f"{torch.accelerator.device_count()} x {name}"


def missing_for_gpu() -> str:
    """Return what this machine lacks for work on a GPU: a build of torch, a device, packages."""
    import torch

    lacks = []
    if not torch.accelerator.is_available():
        built = torch.backends.cuda.is_built()
        lacks.append("a GPU with a driver that torch can use" if built else "a CUDA or ROCm build of torch")
    lacks += [f"{package} ({use})" for package, use in FOR_GPU.items() if installed(package) == NOT_INSTALLED]
    return "; ".join(lacks) or "nothing"


def usable_cores() -> int:
    """Return the number of cores that this process may use; in a container they are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(arguments: Namespace) -> None:
    """Print the table."""
    from hf_warmscale.report import markdown_table

    facts = {
        "Platform": platform.platform(),
        "Python": platform.python_version(),
        "CPU cores": usable_cores(),
        "Accelerator": accelerator(),
        "Missing for GPU work": missing_for_gpu(),
        **{package: installed(package) for package in PACKAGES},
    }
    print(markdown_table([{"what": what, "value": value} for what, value in facts.items()]), end="")


ENV = Verb(
    name="env",
    summary="versions and hardware, for a bug report",
    description="Print versions, hardware and what is missing for work on a GPU as a Markdown table, to paste into a "
    "bug report. It names no path.",
    example="warmscale env",
    run=run,
)
