"""`warmscale`: parse, run the verb, and turn user errors into one sentence."""

import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from typing import TextIO

from hf_warmscale import __version__
from hf_warmscale.cli.average import AVERAGE
from hf_warmscale.cli.completion import COMPLETION
from hf_warmscale.cli.compress import COMPRESS
from hf_warmscale.cli.data import DATA
from hf_warmscale.cli.env import ENV
from hf_warmscale.cli.generate import GENERATE
from hf_warmscale.cli.grow import GROW
from hf_warmscale.cli.interrupt import Interrupt
from hf_warmscale.cli.memory import is_out_of_memory
from hf_warmscale.cli.merge import MERGE
from hf_warmscale.cli.mup import MUP
from hf_warmscale.cli.parser import Parser, UsageError
from hf_warmscale.cli.push import PUSH
from hf_warmscale.cli.quickstart import QUICKSTART
from hf_warmscale.cli.quiet import quieten
from hf_warmscale.cli.scaling import SCALING
from hf_warmscale.cli.shrink import SHRINK
from hf_warmscale.cli.train import TRAIN
from hf_warmscale.cli.verb import Verb, add_verbs
from hf_warmscale.refusals import with_typed_names

USER_ERROR = 2
INTERRUPTED = 130
DEBUG_VARIABLE = "WARMSCALE_DEBUG"

VERBS: tuple[Verb, ...] = (
    QUICKSTART,
    GROW,
    SHRINK,
    TRAIN,
    AVERAGE,
    MERGE,
    COMPRESS,
    GENERATE,
    MUP,
    SCALING,
    DATA,
    PUSH,
    ENV,
    COMPLETION,
)


def make_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="warmscale",
        description="Get a bigger, fresher or better language model out of the ones you have.",
        epilog="A first look, on real text, in minutes: warmscale quickstart",
    )
    parser.add_argument("--version", action="version", version=f"warmscale {__version__}")
    parser.add_argument(
        "--debug",
        action="store_true",
        default=bool(os.environ.get(DEBUG_VARIABLE)),
        help=f"show the traceback of an error; {DEBUG_VARIABLE}=1 does the same",
    )
    add_verbs(parser, VERBS)
    parser.set_defaults(whole_parser=parser)  # `completion` describes it; importing it there would be a circle
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments; those of the process by default.

    Returns:
        `int`: 0 on success, 2 on a user error, 130 after Ctrl-C.

    Example:

    ```python
    >>> main(["grow", "small", "large", "--hidden-size", "1152"])
    ```
    """
    try:
        arguments = make_parser().parse_args(argv)
    except UsageError as error:
        return refuse(error)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    return run(arguments)


def run(arguments: Namespace) -> int:
    """Run a parsed verb; see [`main`]."""
    interrupt = Interrupt()
    try:
        with interrupt.noticed(), warnings.catch_warnings():
            warnings.showwarning = show_warning
            quieten()
            arguments.run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return stop(arguments)
    except (
        BrokenPipeError
    ):  # the reader of a pipe, such as head, has exited; Python would report it once more on shutdown
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if interrupt.pressed:
            return stop(arguments)
        if not arguments.debug and is_out_of_memory(error):
            return refuse(OSError(f"Out of memory: {arguments.when_out_of_memory}"))
        if arguments.debug or not isinstance(error, ValueError | OSError):
            raise
        return refuse(error)
    return 0


def stop(arguments: Namespace) -> int:
    """Say how to continue after Ctrl-C and return the exit code."""
    print(f"\nInterrupted: {arguments.after_interrupt}", file=sys.stderr)
    return INTERRUPTED


def refuse(error: ValueError | OSError) -> int:
    """Print an error as one sentence and return the exit code of a user error."""
    print(f"Error: {sentence(error)}", file=sys.stderr)
    return USER_ERROR


def sentence(error: ValueError | OSError) -> str:
    """Return an error as one line. OS errors become `path: reason`; for other errors the first line is used."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = lines[0] if lines else f"{type(error).__name__}; {DEBUG_VARIABLE}=1 shows the traceback"
    return with_typed_names(text if text.endswith((".", "?")) else f"{text}.")


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as a sentence, without the file and line that gave it."""
    print(f"Warning: {with_typed_names(str(message))}", file=file or sys.stderr)
