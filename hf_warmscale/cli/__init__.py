"""The command line: thin verbs that parse, call, print and write. Nothing imports it."""

from hf_warmscale.cli.entry import main

__all__ = ["main"]
