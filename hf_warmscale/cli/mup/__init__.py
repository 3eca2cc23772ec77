"""`warmscale mup`: what the rules say of a model, whether they hold, and the way out of them."""

from hf_warmscale.cli.mup.check import CHECK
from hf_warmscale.cli.mup.explain import EXPLAIN
from hf_warmscale.cli.mup.export import EXPORT
from hf_warmscale.cli.mup.transfer import TRANSFER
from hf_warmscale.cli.verb import Verb

MUP = Verb(
    name="mup",
    summary="explain, check and use maximal update parametrization",
    verbs=(EXPLAIN, CHECK, TRANSFER, EXPORT),
)

__all__ = ["MUP"]
