"""Above training: the learning-rate sweep and the coordinate check."""

from hf_warmscale.tuning.coordinate_result import CoordinateResult
from hf_warmscale.tuning.coordinates import check_models, coordinate_check
from hf_warmscale.tuning.ladder import Axis, at_size, ladder
from hf_warmscale.tuning.optimum import Curve, Optimum, find_optima
from hf_warmscale.tuning.point import Point
from hf_warmscale.tuning.proxy import ProxyTask, train_model, train_proxy
from hf_warmscale.tuning.sweep import sweep
from hf_warmscale.tuning.testing import assert_coordinates, assert_lr_transfers
from hf_warmscale.tuning.transfer import lr_transfer
from hf_warmscale.tuning.transfer_result import TransferResult

__all__ = [
    "Axis",
    "CoordinateResult",
    "Curve",
    "Optimum",
    "Point",
    "ProxyTask",
    "TransferResult",
    "assert_coordinates",
    "assert_lr_transfers",
    "at_size",
    "check_models",
    "coordinate_check",
    "find_optima",
    "ladder",
    "lr_transfer",
    "sweep",
    "train_model",
    "train_proxy",
]
