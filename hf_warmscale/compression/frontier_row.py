"""One row of a frontier, and which rows pay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from hf_warmscale.evaluation import PairedDifference


@dataclass(frozen=True)
class FrontierRow:
    """One compressed model.

    Args:
        model (`str`): its name.
        bits (`int` or `None`): of a quantized value; `None` as stored.
        sparsity (`float`): the share of pruned weights.
        bytes (`int`): on disk, scales and masks included; see `Frontier.storage`.
        nll (`float`): nats per token; infinite if the model no longer gives finite losses.
        difference (`PairedDifference`): to the reference, in nats per token; negative if this model is better.
        pareto (`bool`): no other row is as small and as good, and better in one of the two.

    Example:

    ```python
    >>> row = compression_frontier("HuggingFaceTB/SmolLM2-135M", bits=(8, 6, 4), sparsities=(0,), documents=texts,
    ...                            tokenizer=tokenizer).rows[1]
    >>> row.bits, row.sparsity
    (8, 0)
    >>> print(row.bytes, row.difference.estimate)
    ```
    """

    model: str
    bits: int | None
    sparsity: float
    bytes: int
    nll: float
    difference: PairedDifference
    pareto: bool = False


def with_pareto_flags(rows: Sequence[FrontierRow]) -> tuple[FrontierRow, ...]:
    """Return the rows with `pareto` set: no other row is as small and as good, and better in one of the two."""
    points = [(row.bytes, row.nll) for row in rows]

    def beaten(point: tuple[int, float]) -> bool:
        return any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points)

    return tuple(
        replace(row, pareto=isfinite(row.nll) and not beaten(point)) for row, point in zip(rows, points, strict=True)
    )
