"""Weights of a linear merge: one number per checkpoint, the oldest first, with a sum of one. Plain arithmetic."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

Weights = tuple[float, ...]

LAWA_WINDOW = 5
"""Checkpoints averaged by default (arXiv 2306.03241)."""


def pair_weights(later: float) -> Weights:
    """Return `(1 - later, later)`; above 1 this extrapolates (arXiv 2403.19390, section 3).

    Args:
        later (`float`): the weight of the later checkpoint.

    Example:

    ```python
    >>> pair_weights(0.75)
    (0.25, 0.75)
    ```
    """
    return (1.0 - later, later)


def uniform_weights(count: int) -> Weights:
    """Return `1 / count` for each of `count` checkpoints.

    Args:
        count (`int`): number of checkpoints.

    Example:

    ```python
    >>> uniform_weights(4)
    (0.25, 0.25, 0.25, 0.25)
    ```
    """
    return (1.0 / count,) * count


def one_hot_weights(count: int, index: int) -> Weights:
    """Return the weights of checkpoint `index` alone: 1 for it and 0 for the others."""
    return tuple(float(position == index) for position in range(count))


def subset_weights(count: int, members: frozenset[int]) -> Weights:
    """Return the uniform average of the checkpoints `members`: a soup (arXiv 2203.05482)."""
    return tuple(1.0 / len(members) if index in members else 0.0 for index in range(count))


def lawa_weights(count: int, window: int = LAWA_WINDOW) -> Weights:
    """Return the uniform average of the latest `window` checkpoints, or of all if fewer (arXiv 2209.14981).

    Args:
        count (`int`): number of checkpoints, the oldest first.
        window (`int`): how many of the latest are averaged.

    Example:

    ```python
    >>> lawa_weights(4, window=2)
    (0.0, 0.0, 0.5, 0.5)
    ```
    """
    return subset_weights(count, frozenset(range(max(0, count - window), count)))


def ema_weights(count: int, decay: float) -> Weights:
    """Return an exponential moving average that starts with the oldest: `decay**i * (1 - decay)` for age `i`.

    Args:
        count (`int`): number of checkpoints, the oldest first.
        decay (`float`): in [0, 1): the share that the average keeps at each new checkpoint.

    Example:

    ```python
    >>> ema_weights(3, decay=0.5)
    (0.25, 0.25, 0.5)
    ```
    """
    return (decay ** (count - 1), *((1 - decay) * decay ** (count - 1 - index) for index in range(1, count)))


def power_weights(count: int, exponent: float) -> Weights:
    """Return `((j + 1)**p - j**p) / count**p` for checkpoint `j`, the oldest being 0.

    This merge is equivalent to the learning-rate decay `1 - (i / count)**p` over the updates between the checkpoints
    (arXiv 2507.17634). `p = 1` is a linear decay, and the uniform average; above 1, newer checkpoints weigh more.

    Args:
        count (`int`): number of checkpoints, the oldest first.
        exponent (`float`): p, above 0.

    Example:

    ```python
    >>> power_weights(4, 2.0)
    (0.0625, 0.1875, 0.3125, 0.4375)
    ```
    """
    return trajectory_weights(count, float(count), exponent)


def trajectory_weights(count: int, window: float, exponent: float) -> Weights:
    """Return the power family over the latest `window` of `count` checkpoints, where `window` may be fractional.

    Checkpoint `j` covers the interval `[j, j + 1]` of the trajectory, and the window covers its last `window` units.
    While `x` runs from 0 to 1 through the window, each checkpoint gets the increase of `x**exponent` over its
    interval. For an integer `window` these are zeros followed by `power_weights(window, exponent)`; in between they
    change continuously, which a search needs.

    Args:
        count (`int`): number of checkpoints.
        window (`float`): in `(0, count]`, checkpoints.
        exponent (`float`): above 0.

    Example:

    ```python
    >>> trajectory_weights(4, window=1.5, exponent=1.0)
    (0.0, 0.0, 0.333..., 0.666...)
    ```
    """
    start = count - window
    # Clamped, so the checkpoint at the edge of the window gets the increase over the part of its interval inside it.
    edges = [min(max((edge - start) / window, 0.0), 1.0) ** exponent for edge in range(count + 1)]
    return tuple(after - before for before, after in pairwise(edges))


def decay_weights(factors: Sequence[float]) -> Weights:
    """Return the merge of `k + 1` checkpoints that is equivalent to scaling the `k` updates between them by `factors`.

    `c_k = w_k`, `c_j = w_j - w_(j+1)`, `c_0 = 1 - w_1` (arXiv 2507.17634).

    Args:
        factors (`Sequence[float]`): learning-rate factors `w_1, ..., w_k` of a decay, in the order of the updates.

    Example:

    ```python
    >>> decay_weights([1.0, 0.5])  # two updates between three checkpoints, the second at half the rate
    (0.0, 0.5, 0.5)
    ```
    """
    # Checkpoint j holds the updates 1 ... j. Update i is thus in all checkpoints from i on, and their weights must add
    # up to w_i: a telescoping sum of differences.
    edges = (1.0, *factors, 0.0)
    return tuple(before - after for before, after in pairwise(edges))


def simplex_point(unit: Sequence[float]) -> Weights:
    """Map a point of the unit cube to the simplex by stick breaking, so that uniform points stay uniform.

    Checkpoint `i`, from 1 to `K - 1`, takes the share `1 - (1 - u_i)**(1 / (K - i))` of what is left of the stick; the
    last one takes the rest. The exponent makes uniform `u` Dirichlet(1, ..., 1) (Devroye 1986, chapter XI); plain
    stick breaking would prefer the first checkpoints.

    Args:
        unit (`Sequence[float]`): `K - 1` numbers in [0, 1].
    """
    count, left, weights = len(unit) + 1, 1.0, []
    for index, u in enumerate(unit, start=1):
        # What is left, not what is taken, is computed first: u = 1 then gives a rest of exactly 0.
        rest = left * (1.0 - u) ** (1.0 / (count - index))
        weights.append(left - rest)
        left = rest
    return (*weights, left)


def unit_point(weights: Sequence[float]) -> tuple[float, ...]:
    """Invert `simplex_point`. Once nothing is left of the stick every number is right; 0 is returned."""
    count, left, unit = len(weights), 1.0, []
    for index, weight in enumerate(weights[:-1], start=1):
        # Rounding in `left -= weight` can make the share of the last piece a little larger than 1.
        share = min(weight / left, 1.0) if left > 1e-12 else 0.0
        unit.append(1.0 - (1.0 - share) ** (count - index))
        left -= weight
    return tuple(unit)


def greedy_soup(singles: Sequence[float], known: Mapping[frozenset[int], float]) -> tuple[frozenset[int], bool]:
    """Run the greedy soup (arXiv 2203.05482, recipe 1) as far as the known losses allow.

    Starting with the best checkpoint, each next one joins the average unless that increases the loss.

    Args:
        singles (`Sequence[float]`): the loss of each checkpoint alone.
        known (`Mapping[frozenset[int], float]`): losses of the averages that were evaluated, by their members.

    Returns:
        `tuple[frozenset[int], bool]`: the soup and `True`; or the average whose loss is needed next and `False`.
    """
    # The index breaks ties, so that every worker, and every resume, builds the same soup.
    first, *others = sorted(range(len(singles)), key=lambda index: (singles[index], index))
    soup, loss = frozenset([first]), singles[first]
    for index in others:
        candidate = soup | {index}
        if candidate not in known:
            return candidate, False
        if known[candidate] <= loss:
            soup, loss = candidate, known[candidate]
    return soup, True
