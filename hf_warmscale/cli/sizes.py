"""The sizes of a model as options, for the verbs that change them."""

from argparse import Namespace
from typing import Annotated, Any, get_origin, get_type_hints

from hf_warmscale.cli.parser import Parser, positive_int
from hf_warmscale.options import Sizes

SIZES: dict[str, str] = {
    name: kind.__metadata__[0]
    for name, kind in get_type_hints(Sizes, include_extras=True).items()
    if get_origin(kind) is Annotated
}
"""The sizes that have a description, and these. A family's own names are found from those of transformers."""


def add_sizes(parser: Parser) -> None:
    """Add one option a size."""
    group = parser.add_argument_group("sizes", "What is not named stays as it is.")
    for name, meaning in SIZES.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=positive_int, metavar="N", help=meaning)


def chosen_sizes(arguments: Namespace) -> dict[str, Any]:
    """Return the sizes by the names of the functions' arguments."""
    return {name: getattr(arguments, name) for name in SIZES}
