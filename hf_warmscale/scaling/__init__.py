"""Know before you train: fit scaling laws, predict losses, and plan what to do with a budget."""

from hf_warmscale.scaling.backtest import Backtest, Errors, hold_out, roll_out
from hf_warmscale.scaling.fit import fit_scaling_law
from hf_warmscale.scaling.frame import Frame, make_frame, read_table
from hf_warmscale.scaling.published import published
from hf_warmscale.scaling.scaling_law import ScalingLaw, load_scaling_law

__all__ = [
    "Backtest",
    "Errors",
    "Frame",
    "ScalingLaw",
    "fit_scaling_law",
    "hold_out",
    "load_scaling_law",
    "make_frame",
    "published",
    "read_table",
    "roll_out",
]
