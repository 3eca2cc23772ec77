"""What a verb is, and how verbs become one parser."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill, indent

from hf_warmscale.cli.parser import VERB, Parser

HELP_WIDTH = 79
NOTHING_WRITTEN = "nothing was written; run the same command again."
MORE_MEMORY = "close other programs, or use a smaller model or a machine with more memory."


@dataclass(frozen=True)
class Verb:
    """One verb of the command line, or a group of them.

    Args:
        name (`str`): what is typed.
        summary (`str`): one line, for the list of verbs.
        description (`str`): what `--help` says above the options.
        example (`str`): a command that works as typed, for the end of `--help`; a group has none.
        add_arguments (`Callable`): adds its options to its parser; imports nothing heavy.
        run (`Callable`): does the work and prints; imports what it needs.
        after_interrupt (`str`): how to continue after Ctrl-C, as the end of a sentence.
        when_out_of_memory (`str`): what to lower, as the end of a sentence.
        verbs (`tuple[Verb, ...]`): the verbs of a group; the group itself does nothing.
    """

    name: str
    summary: str
    description: str = ""
    example: str = ""
    add_arguments: Callable[[Parser], None] | None = None
    run: Callable[[Namespace], None] | None = None
    after_interrupt: str = NOTHING_WRITTEN
    when_out_of_memory: str = MORE_MEMORY
    verbs: "tuple[Verb, ...]" = ()


def add_verbs(parser: Parser, verbs: Sequence[Verb]) -> None:
    """Attach verbs to a parser; a parser whose verb is missing prints its help."""
    parser.set_defaults(
        run=lambda _: parser.print_help(), after_interrupt=NOTHING_WRITTEN, when_out_of_memory=MORE_MEMORY
    )
    choices = parser.add_subparsers(title="verbs", dest=VERB, metavar="VERB [options]", parser_class=Parser)
    for verb in verbs:
        description = fill(verb.description or verb.summary, width=HELP_WIDTH)
        child = choices.add_parser(verb.name, help=verb.summary, description=description)
        if verb.add_arguments is not None:
            verb.add_arguments(child)
        if verb.example:
            shown = f"example:\n{indent(verb.example, '  ')}\n"
            child.epilog = f"{child.epilog or ''}\n{shown}".lstrip()
        if verb.verbs:
            add_verbs(child, verb.verbs)
        if verb.run is not None:
            child.set_defaults(
                run=verb.run, after_interrupt=verb.after_interrupt, when_out_of_memory=verb.when_out_of_memory
            )
