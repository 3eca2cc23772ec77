"""One look for all pictures, drawn without a display. Knows no operation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from hf_warmscale.staging import staged_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 110,
    "font.size": 10,
}


@contextmanager
def figure(path: str | os.PathLike[str], *, size: tuple[float, float] = (7.0, 4.2)) -> Iterator["Figure"]:
    """Yield an empty figure and save it to `path` (PNG), atomically, when the block ends without an error.

    Args:
        path (`str` or `PathLike`): the PNG to write; it is replaced.
        size (`tuple[float, float]`): width and height in inches.

    Example:

    ```python
    >>> with figure("losses.png") as drawing:
    ...     drawing.subplots().plot([0, 1, 2], [5.6, 4.9, 4.7])
    ```
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, STYLE)):
        drawing = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(drawing)
        yield drawing
        with staged_file(path) as staging:
            drawing.savefig(staging, format="png")
