"""The picture of a learning-rate transfer: one panel for each parametrization, one curve for each size."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_warmscale.report import figure
from hf_warmscale.tuning.transfer_result import TransferResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_transfer(path: str | os.PathLike[str], results: Sequence[TransferResult]) -> None:
    """Draw loss against log2 of the learning rate; a line marks each size's best rate, a band its interval."""
    with figure(path, size=(5.2 * len(results), 4.2)) as drawing:
        panels = drawing.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for panel, result in zip(panels, results, strict=True):
            _draw_panel(panel, result)
        panels[0].set_ylabel("validation loss (nats per token)")
        lowest = min(optimum.loss for result in results for optimum in result.optima)
        panels[0].set_ylim(lowest - 0.1, lowest + 1.5)


def _draw_panel(panel: "Axes", result: TransferResult) -> None:
    import matplotlib

    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(result.optima)))
    for colour, optimum in zip(colours, result.optima, strict=True):
        curve = result.curves[optimum.size]
        rates = sorted(rate for rate in curve if math.isfinite(max(curve[rate].values())))
        means = [float(np.mean(list(curve[rate].values()))) for rate in rates]
        panel.plot(np.log2(rates), means, "o-", color=colour, markersize=4, label=f"{result.axis} {optimum.size}")
        panel.axvspan(optimum.low, optimum.high, color=colour, alpha=0.12, linewidth=0)
        panel.axvline(optimum.log2_lr, color=colour, linewidth=1, linestyle=":")
    panel.set_title(f"{result.rule}: the best rate drifts by {result.drift:+.2f} octaves")
    panel.set_xlabel("log2 of the base learning rate")
    panel.legend()
