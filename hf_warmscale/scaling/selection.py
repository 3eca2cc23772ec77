"""Which points of a frame belong in one law: no warmup, no beginning of a run, no mixing of cooled and uncooled."""

import numpy as np

from hf_warmscale.scaling.frame import Frame, run_numbers

FIRST_SHARE = 0.1
"""The part of a run's tokens that is left out at its beginning, where the loss follows no power law yet.

A share, not a number: a cut of 10B tokens, as others use, removes every small run."""


def select(
    frame: Frame, *, first_share: float = FIRST_SHARE, mix_cooled: bool = False
) -> tuple[Frame, list[tuple[str, int]]]:
    """Return the points that belong together, and what was left out, with the number of points.

    Args:
        frame (`Frame`): all points.
        first_share (`float`): see `FIRST_SHARE`; the last point of a run always stays.
        mix_cooled (`bool`): keep uncooled points beside cooled ones.

    Raises:
        ValueError: if the share is not below 1.
    """
    if not 0 <= first_share < 1:
        raise ValueError(f"first_share is {first_share:g}; give a share of a run from 0 to below 1.")
    part, run = np.array(frame.part), run_numbers(frame)
    last = np.zeros(len(frame))  # by run
    np.maximum.at(last, run, frame.D)
    tests = [
        ("points of the warmup", part == "warmup"),
        ("points of the beginning of a run", first_share * last[run] > frame.D),
        ("uncooled points", (part != "cooled") & (part == "cooled").any() & (not mix_cooled)),
    ]
    kept, dropped = np.ones(len(frame), dtype=bool), []
    # A point is counted under the first test that it fails.
    for what, test in tests:
        dropped.append((what, int(np.sum(kept & test))))
        kept &= ~test
    return frame.where(kept), dropped
