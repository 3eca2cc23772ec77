"""The sizes of a model as options, for the verbs that change them."""

from argparse import Namespace
from typing import Any

from hf_warmscale.cli.parser import Parser, positive_int

SIZES = {
    "hidden_size": "width of the residual stream",
    "intermediate_size": "neurons of an MLP",
    "num_attention_heads": "query heads",
    "num_key_value_heads": "key-value heads",
    "num_hidden_layers": "blocks",
    "vocab_size": "tokens",
}
"""The names are those of transformers' configs; a family's own names are found from them."""


def add_sizes(parser: Parser) -> None:
    """Add one option a size."""
    group = parser.add_argument_group("sizes", "What is not named stays as it is.")
    for name, meaning in SIZES.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=positive_int, metavar="N", help=meaning)


def chosen_sizes(arguments: Namespace) -> dict[str, Any]:
    """Return the sizes by the names of the functions' arguments."""
    return {name: getattr(arguments, name) for name in SIZES}
