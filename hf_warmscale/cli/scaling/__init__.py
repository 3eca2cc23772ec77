"""`warmscale scaling`: what a loss will be, how far to trust that, and what a budget buys."""

from hf_warmscale.cli.scaling.fit import FIT
from hf_warmscale.cli.scaling.plan import PLAN
from hf_warmscale.cli.scaling.predict import PREDICT
from hf_warmscale.cli.verb import Verb

SCALING = Verb(
    name="scaling",
    summary="fit scaling laws, predict losses, plan a budget",
    verbs=(FIT, PREDICT, PLAN),
)

__all__ = ["SCALING"]
