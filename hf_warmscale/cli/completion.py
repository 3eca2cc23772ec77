"""`warmscale completion`: the script that completes verbs, options and paths in a shell."""

from argparse import Namespace

from hf_warmscale.cli.parser import Parser
from hf_warmscale.cli.verb import Verb

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: Parser) -> None:
    """Add the shell."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def run(arguments: Namespace) -> None:
    """Print the script."""
    import shtab

    print(shtab.complete(arguments.whole_parser, shell=arguments.shell))


COMPLETION = Verb(
    name="completion",
    summary="print the completion script of a shell",
    description="Print a completion script. The example switches it on in bash.",
    example='eval "$(warmscale completion bash)"',
    add_arguments=add_arguments,
    run=run,
)
