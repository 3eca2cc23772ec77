"""The parser alone: what a mistake is answered with, in this process."""

from pathlib import Path

import pytest

from hf_warmscale.cli import main
from hf_warmscale.cli.entry import make_parser
from hf_warmscale.cli.parser import UsageError

MISTAKES = {
    "a misspelt verb": ("gorw", "has no verb 'gorw'; did you mean grow?"),
    "a misspelt verb of a group": ("data pakc a b", "warmscale data has no verb 'pakc'; did you mean pack?"),
    "an unknown verb": ("fly", "choose one of quickstart, grow,"),
    "a misspelt option": ("grow a b --hiden-size 8", "has no option --hiden-size; did you mean --hidden-size?"),
    "underscores": ("grow a b --hidden_size 8", "did you mean --hidden-size?"),
    "half an option": ("grow a b --hidden 8", "has no option --hidden; did you mean --hidden-size?"),
    "an unknown option": ("grow a b --zzz 8", "has no option --zzz; see warmscale grow --help."),
    "a missing argument": ("grow a", "the following arguments are required: OUTPUT; see warmscale grow --help."),
    "a surplus argument": ("grow a b c", "Unexpected argument of warmscale grow: 'c'"),
    "a word for a number": ("grow a b --hidden-size big", "--hidden-size: 'big' is not a whole number above 0"),
    "a negative size": ("grow a b --hidden-size -8", "--hidden-size: '-8' is not a whole number above 0"),
    "an unknown operator": (
        "grow a b --width clon",
        "--width of warmscale grow cannot be 'clon'; did you mean clone?",
    ),
    "an unlike operator": ("grow a b --depth up", "choose one of stack, interleave, identity, dus."),
    "an unknown shell": ("completion tcsh", "SHELL of warmscale completion cannot be 'tcsh'"),
}


@pytest.mark.parametrize("command, answer", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_answered_with_one_sentence(command: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert answer in printed.err
    assert printed.err.count("\n") == 1


def test_value_of_an_unknown_option_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "model", "me/model", "--token=hf_secret"]) == 2
    assert main(["push", "model", "me/model", "--token", "hf_secret"]) == 2
    assert "hf_secret" not in capsys.readouterr().err


def test_fields_of_a_recipe_are_forwarded_in_their_order() -> None:
    parsed = make_parser().parse_args(
        ["train", "a.yaml", "--learning_rate", "1e-3", "--mixture_seed", "-1", "--show-schedule", "x.png"]
    )
    assert (parsed.config, parsed.show_schedule) == ("a.yaml", "x.png")
    assert parsed.overrides == ["--learning_rate", "1e-3", "--mixture_seed", "-1"]


def test_a_group_without_a_verb_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    assert "tokenize text" in capsys.readouterr().out


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        main(["--debug", "train", missing])


def test_the_same_parser_twice_is_the_same() -> None:
    with pytest.raises(UsageError):
        make_parser().parse_args(["grow"])
    assert make_parser().format_help() == make_parser().format_help()
