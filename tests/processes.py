"""Processes of their own for a test, at the price of a fork: a server that has run nothing has the libraries.

A fresh interpreter imports torch and transformers for many seconds. The server does that once for a session; a child
of it is as clean as a new interpreter: one thread, no process group, no state of another test. What a library reads
from the environment when it is imported (where the Hub is, how wide the terminal is) needs a fresh interpreter still.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(
    [
        "hf_warmscale.cli",
        "hf_warmscale.merging.search.search",
        "hf_warmscale.mup",
        "hf_warmscale.training.recipe.run",
        "transformers.models.granite.modeling_granite",
        "transformers.models.llama.modeling_llama",
        "transformers.models.mixtral.modeling_mixtral",
        "tests.evaluation.tiny",
        "tests.merging.trained",
    ]
)


ON_CPU = {"ACCELERATE_USE_CPU": "true"}
"""Not for DeepSpeed, which accelerate would leave out then."""


def start(
    function: Callable[..., object],
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    out: Path | None = None,
) -> BaseProcess:
    """Start `function(*arguments)`; what it returns is the exit code, what it prints goes to the file `out`.

    Args:
        environment (`Mapping`): variables beside those of this process.
        cwd (`Path`): its current folder.
        out (`Path`): takes standard output; standard error goes to the same name with `.err`.
    """
    variables = {**os.environ, **(environment or {})}
    process = CLEAN.Process(target=_enter, args=(variables, cwd or Path.cwd(), out, function, arguments))
    process.start()
    return process


def launch(
    function: Callable[..., object],
    *arguments: object,
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    outs: list[Path] | None = None,
    cwd: Path | None = None,
) -> list[int | None]:
    """Run a function on several ranks, as a launcher does; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", **(environment or {})}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    processes = [
        start(
            function,
            *arguments,
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            out=outs[rank] if outs else None,
            cwd=cwd,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.join(600)
    return [process.exitcode for process in processes]


def use_gloo() -> None:
    """Send DeepSpeed's collectives through gloo: its own ones for CPUs would be compiled first, for a minute."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _enter(
    variables: dict[str, str], cwd: Path, out: Path | None, function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    """Become a process of its own and call the function; the server's environment may be an older one."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    if out is not None:
        for stream, path in ((1, out), (2, out.with_suffix(".err"))):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    code = function(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code if isinstance(code, int) else 0)
