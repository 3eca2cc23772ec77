"""The pictures of this room."""

import os
from collections.abc import Sequence
from math import isfinite

import numpy as np

from hf_warmscale.compression.frontier_row import FrontierRow
from hf_warmscale.report import figure

MARKERS = "os^Dv<>p"


def draw_frontier(path: str | os.PathLike[str], rows: Sequence[FrontierRow], reference: str) -> None:
    """Draw the loss of every model against its size: a colour a model, a marker a sparsity, the bits beside it.

    Args:
        path (`str` or `PathLike`): the PNG to write.
        rows (`Sequence[FrontierRow]`): what is drawn; rows without a finite loss are left out.
        reference (`str`): the model that the intervals compare with.
    """
    rows = [row for row in rows if isfinite(row.nll)]
    models, sparsities = (
        list(dict.fromkeys(values)) for values in ([row.model for row in rows], [row.sparsity for row in rows])
    )
    with figure(path, size=(7.6, 4.8)) as drawing:
        axes = drawing.add_subplot()
        for row in rows:
            colour, marker = f"C{models.index(row.model)}", MARKERS[sparsities.index(row.sparsity) % len(MARKERS)]
            change = row.difference
            low, high = change.estimate - change.low, change.high - change.estimate
            size = row.bytes / 1e6
            axes.errorbar(size, row.nll, [[low], [high]], color=colour, marker=marker, ms=6, capsize=2, lw=1)
            label = "stored" if row.bits is None else f"{row.bits}"
            axes.annotate(label, (size, row.nll), textcoords="offset points", xytext=(5, 4), fontsize=8, color=colour)
        best = sorted((row for row in rows if row.pareto), key=lambda row: row.bytes)
        # A step: between two sizes the best that is had is the smaller one's loss.
        front = [row.bytes / 1e6 for row in best], [row.nll for row in best]
        axes.step(*front, where="post", color="black", lw=1, zorder=0)
        for number, model in enumerate(models):
            axes.plot([], [], color=f"C{number}", label=model)
        for number, sparsity in enumerate(sparsities):
            axes.plot(
                [], [], color="gray", ls="", marker=MARKERS[number % len(MARKERS)], label=f"{sparsity:.0%} zeros"
            )
        axes.plot([], [], color="black", lw=1, label="Pareto front")
        axes.set(xscale="log", xlabel="MB on disk (log scale)", ylabel="nats per token (held out)")
        sizes = [row.bytes / 1e6 for row in rows]
        ticks = np.geomspace(min(sizes), max(sizes), 5)
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.margins(x=0.1)
        axes.set_title(
            f"Size and loss; numbers are bits, bars the interval of the change from {reference}", fontsize=9
        )
        axes.legend(fontsize=8)
