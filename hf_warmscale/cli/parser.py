"""An argument parser that answers a mistake with one sentence, naming the nearest match."""

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


class UsageError(ValueError):
    """A command line that cannot be understood."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions, and gives long options room on their line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises `UsageError` instead of printing its usage and leaving.

    Options cannot be abbreviated: a prefix of an option is an error that names the whole option.
    """

    forward_unknown_to: str | None = None
    """The attribute that takes unknown arguments, for a verb with its own parser; by default they are refused."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the message that argparse would print."""
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help.")

    def parse_known_args(  # type: ignore[override]  # argparse types a namespace of any class
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and refuse unknown arguments here: only the verb's own parser can name the nearest option."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if self.forward_unknown_to is not None:
            setattr(parsed, self.forward_unknown_to, unknown)
        elif unknown:
            raise UsageError(self._unknown(unknown[0]))
        return parsed, []

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"Unexpected argument of {self.prog}: {argument!r}; see {self.prog} --help."
        option = argument.partition("=")[0]  # never the value: it may be a secret
        advice = _advice(option, self._option_string_actions, f"see {self.prog} --help.")
        return f"{self.prog} has no option {option}; {advice}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        advice = _advice(str(value), action.choices, f"choose one of {', '.join(map(str, action.choices))}.")
        if action.dest == VERB:
            raise UsageError(f"{self.prog} has no verb {value!r}; {advice}")
        name = "/".join(action.option_strings) or action.metavar
        raise UsageError(f"{name} of {self.prog} cannot be {value!r}; {advice}")


VERB = "verb"
"""The attribute of the namespace that holds the verb."""


def _advice(word: str, known: Iterable[object], otherwise: str) -> str:
    matches = get_close_matches(word, [str(item) for item in known], n=1)
    return f"did you mean {matches[0]}?" if matches else otherwise


def positive_int(text: str) -> int:
    """Read a whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
