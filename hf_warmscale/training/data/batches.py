"""The samples of a stage as a sized dataset, and what their rows look like."""

from collections.abc import Sequence

from torch.utils.data import Dataset

from hf_warmscale.training.data.mixture import ReplayMixture
from hf_warmscale.training.data.rows import Row, Rows, ends

PACKED_COLUMNS = ("input_ids", "position_ids", "labels")

SOURCE_NUMBER = "warmscale_source"
"""The key that carries the number of a source from a row to its batch; the trainer takes it out before the model."""


class StageSamples(Dataset[Row]):
    """The first `num_samples` samples of a mixture, to be read in order.

    Args:
        mixture (`ReplayMixture`): where they come from.
        num_samples (`int`): how many places there are.
        shift (`int`): place i is sample i + shift. A resumed loader skips as many places as if all steps had had the
            total batch of now; where that was another one before, the shift brings the first place behind them to
            the next sample.
    """

    def __init__(self, mixture: ReplayMixture, num_samples: int, *, shift: int = 0) -> None:
        self.mixture, self.num_samples, self.shift = mixture, num_samples, shift

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        # Places before the shift are never read: they are among those that are skipped.
        samples = [max(index + self.shift, 0) for index in indices]
        return [{**row, SOURCE_NUMBER: number} for number, row in self.mixture.read(samples)]


def is_packed(rows: Rows | ReplayMixture) -> bool:
    """Tell whether rows carry the positions of packed documents."""
    return "position_ids" in rows[0]


def row_length(mixture: ReplayMixture) -> int | None:
    """Return the tokens of every row, or `None` if the first and last rows of the sources differ in length."""
    lengths = {len(rows[index]["input_ids"]) for rows in mixture.sources.values() for index in ends(rows)}
    return lengths.pop() if len(lengths) == 1 else None
