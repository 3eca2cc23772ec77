"""Know before you train: fit scaling laws, predict losses, and plan what to do with a budget."""

from hf_warmscale.scaling.backtest import Backtest, Errors, Step, hold_out, roll_out
from hf_warmscale.scaling.figures import draw_law, optimal_size
from hf_warmscale.scaling.fit import fit_scaling_law
from hf_warmscale.scaling.frame import Frame, make_frame, read_table
from hf_warmscale.scaling.objective import Tolerances
from hf_warmscale.scaling.plan import Plan, plan
from hf_warmscale.scaling.plan_rows import BreakEven, Row
from hf_warmscale.scaling.predict import Prediction, predict_loss
from hf_warmscale.scaling.published import published
from hf_warmscale.scaling.runs import ladder_frame, read_run
from hf_warmscale.scaling.scaling_law import ScalingLaw, load_scaling_law
from hf_warmscale.scaling.throughput import measure_throughput

__all__ = [
    "Backtest",
    "BreakEven",
    "Errors",
    "Frame",
    "Plan",
    "Prediction",
    "Row",
    "ScalingLaw",
    "Step",
    "Tolerances",
    "draw_law",
    "fit_scaling_law",
    "hold_out",
    "ladder_frame",
    "load_scaling_law",
    "make_frame",
    "measure_throughput",
    "optimal_size",
    "plan",
    "predict_loss",
    "published",
    "read_run",
    "read_table",
    "roll_out",
]
