"""Which row each sample of a stage is, as a pure function of the seed and the global sample index."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.data.apportionment import Apportionment
from hf_warmscale.training.data.change_points import ChangedApportionment, apportioned, same_weights, upcoming
from hf_warmscale.training.data.permutation import Integers, key_of, permuted
from hf_warmscale.training.data.rows import Row, Rows, fetch, identity, is_streamed, refuse_other_rows

Weights = Mapping[str, float] | Sequence[float]

SOURCE = "source"
"""The key under which a row carries the name of its source."""

CHUNK = 1 << 16
BLOCK = 1 << 12
"""Samples that are located together: locating one at a time would take longer than reading its row."""


class ReplayMixture(Dataset[Row]):
    """Mix any number of map-style datasets in given shares, in one order for all ranks and workers.

    The source and the row of sample i depend on the seed and on i alone:

    - the source follows by nested rounding of cumulative weights, so that after any number of samples the count of a
      source is within `deviation` of its expectation (below one for up to four sources, see `Apportionment`);
    - the row follows from a shuffled pass over the source, in a new order for each pass (see `permuted`); a stream
      gives its next row.

    So the index is the only state: a resumed run, another world size or another number of workers continue the same
    sequence. The number of samples is fixed: replayed samples replace new ones (2403.08763, compute-equivalent
    replay).

    Args:
        sources (`Mapping[str, Rows]`): datasets by name; their rows are dictionaries.
        weights: shares that sum to 1, by name or in the order of `sources`. Shares that change along the stage are a
            mapping from the sample at which they begin to shares: `{0: {"new": 0.5, "old": 0.5}, 9_600: ...}`.
        seed (`int`): of the orders of rows.
        max_passes (`float` or `Mapping[str, float]`, *optional*): the passes that a stage may make over every source,
            or over each by name; unlimited by default.
        first_sample (`int`): the sample of the endless sequence at which this mixture begins; see `after`.
        changes (`Mapping[int, Mapping[int, Weights]]`, *optional*): other weights, by the sample at which a run was
            changed to them; see `continuing`.

    Raises:
        ValueError: if a source is empty, a name is unknown, or the weights are negative or do not sum to 1.

    Example:

    ```python
    >>> english, german = [{"input_ids": [i]} for i in range(40)], [{"input_ids": [100 + i]} for i in range(40)]
    >>> mixture = ReplayMixture({"german": german, "english": english}, {"german": 0.9, "english": 0.1}, seed=0)
    >>> [mixture[i]["source"] for i in range(3, 6)]
    ['german', 'english', 'german']
    >>> mixture.counts(40)
    {'german': 36, 'english': 4}

    ```
    """

    def __init__(
        self,
        sources: Mapping[str, Rows],
        weights: Weights | Mapping[int, Weights],
        seed: int = 0,
        *,
        max_passes: float | Mapping[str, float] | None = None,
        first_sample: int = 0,
        changes: Mapping[int, Mapping[int, Weights]] | None = None,
    ) -> None:
        if not sources:
            raise ValueError("The mixture has no source; give at least one dataset.")
        self.sources = dict(sources)
        self.names = list(self.sources)
        self._rows = list(self.sources.values())
        self.seed = seed
        self.sizes = [len(rows) for rows in self.sources.values()]
        for name, size in zip(self.names, self.sizes, strict=True):
            if size == 0:
                raise ValueError(f"The source {name!r} of the mixture has no rows; leave it out or fill it.")
        # Given shares are made exact once. Done again, it could move a recorded share by its last bit.
        self._is_exact = changes is not None
        self.weights = self._by_start(weights)
        self.changes = {point: self._by_start(later, point) for point, later in (changes or {}).items()}
        self.max_passes = self._limits(max_passes)
        self._apportionment: Apportionment | ChangedApportionment = apportioned(self.weights)
        if self.changes:
            self._apportionment = ChangedApportionment({0: self.weights, **self.changes}, len(self.names))
        self._keys = [key_of(seed, name) for name in self.names]
        self.first_sample = first_sample
        self._block: tuple[int, tuple[Integers, Integers]] | None = None
        self._described: dict[str, dict[str, Any]] | None = None

    @property
    def deviation(self) -> float:
        """The bound on |count - expected count| of a source, in samples."""
        return self._apportionment.deviation

    def __getitem__(self, index: int) -> Row:
        """Return sample `index` with the name of its source under `"source"`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Return several samples at once: the form in which a `DataLoader` asks."""
        return [{**row, SOURCE: self.names[number]} for number, row in self.read(indices)]

    def read(self, indices: Sequence[int]) -> list[tuple[int, Row]]:
        """Return several samples as their sources hold them, each with the number of its source."""
        located = [self.locate(index) for index in indices]
        found: dict[tuple[int, int], Row] = {}
        # One call per source: `datasets` reads several rows at once far faster than one by one.
        for source in {source for source, _ in located}:
            wanted = [row for number, row in located if number == source]
            found |= {
                (source, row): content for row, content in zip(wanted, fetch(self._rows[source], wanted), strict=True)
            }
        return [(place[0], found[place]) for place in located]

    def locate(self, sample: int) -> tuple[int, int]:
        """Return the number of the source, in the order of `names`, and the row within it."""
        if sample < 0:
            raise IndexError(f"Sample {sample} of a mixture does not exist; samples count from 0.")
        # A loader asks for samples in order, so nearly every sample is in the block of the one before.
        number, place = divmod(self.first_sample + sample, BLOCK)
        if self._block is None or self._block[0] != number:
            self._block = number, self._locate(np.arange(number * BLOCK, (number + 1) * BLOCK))
        sources, rows = self._block[1]
        return int(sources[place]), int(rows[place])

    def locate_range(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return sources and rows of the samples from `start` to `stop`, in the smallest integers that hold them."""
        count, start = stop - start, self.first_sample + start
        sources = np.empty(count, dtype=np.min_scalar_type(len(self.names)))
        rows = np.empty(count, dtype=np.min_scalar_type(max(self.sizes)))
        for begin in range(0, count, CHUNK):
            part = slice(begin, min(begin + CHUNK, count))
            sources[part], rows[part] = self._locate(np.arange(start + part.start, start + part.stop))
        return sources, rows

    def counts(self, num_samples: int) -> dict[str, int]:
        """Return how many of the first `num_samples` samples come from each source."""
        # The apportionment counts from sample 0 of the endless sequence; what came before `first_sample` is
        # subtracted.
        upto, before = map(self._apportionment.counts, (self.first_sample + num_samples, self.first_sample))
        return {name: a - b for name, a, b in zip(self.names, upto, before, strict=True)}

    def expected_counts(self, num_samples: int) -> dict[str, float]:
        """Return the weights summed over the first `num_samples` samples."""
        upto, before = map(self._apportionment.expected, (self.first_sample + num_samples, self.first_sample))
        return {name: a - b for name, a, b in zip(self.names, upto, before, strict=True)}

    def after(self, num_samples: int) -> "ReplayMixture":
        """Return the same sequence from sample `num_samples` on: rows that a run of that length has not drawn."""
        return ReplayMixture(
            self.sources,
            self.weights,
            self.seed,
            max_passes=self.max_passes,
            first_sample=self.first_sample + num_samples,
            changes=self.changes,
        )

    def continuing(self, description: Mapping[str, Any], num_samples: int) -> "ReplayMixture":
        """Return the sequence of a saved description up to `num_samples`, and from there on the shares of this one.

        Each source goes on with the row after its last one, so none is drawn again or left out. A source may be new;
        one that is to be drawn no more keeps its place with the weight 0.

        Args:
            description (`Mapping`): see `describe`; of the same `first_sample`, else this mixture is returned.
            num_samples (`int`): how many samples of the saved sequence were drawn.

        Raises:
            ValueError: if a saved source is missing.
        """
        if description.get("first_sample", 0) != self.first_sample:
            return self
        for name in description["sources"]:
            if name not in self.sources:
                raise ValueError(
                    f"The run has drawn from the source {name!r}; keep it in the mixture, with the weight 0 if it "
                    "should give no more."
                )
        point, names = self.first_sample + num_samples, list(description["sources"])
        past, changes = _saved_weights(description["weights"]), _saved_changes(description)
        in_force = (list(changes.values()) or [past])[-1]
        coming = upcoming(self.weights, point)
        if same_weights(upcoming(in_force, point), coming):
            return self._over(names, past, changes)
        names += [name for name in self.names if name not in names]
        coming = {start: {name: shares[name] for name in names} for start, shares in coming.items()}
        if not num_samples:  # nothing was drawn, so nothing is changed
            return self._over(names, coming, {})
        earlier = {start: weights for start, weights in changes.items() if start < point}
        return self._over(names, past, {**earlier, point: coming})

    def _over(
        self, names: list[str], weights: Mapping[int, Weights], changes: Mapping[int, Mapping[int, Weights]]
    ) -> "ReplayMixture":
        """Return a mixture over some of the same sources."""
        mixture = ReplayMixture(
            {name: self.sources[name] for name in names},
            weights,
            self.seed,
            max_passes={name: limit for name, limit in self.max_passes.items() if name in names},
            first_sample=self.first_sample,
            changes=changes,
        )
        mixture._described = {name: self._identities()[name] for name in names}
        return mixture

    def check_passes(self, num_samples: int) -> None:
        """Refuse a stage of `num_samples` samples that goes through a source more often than allowed.

        Raises:
            ValueError: naming the source, its rows and what the stage would draw.
        """
        for (name, count), size in zip(self.counts(num_samples).items(), self.sizes, strict=True):
            limit = self.max_passes.get(name)
            if limit is not None and count > limit * size:
                raise ValueError(
                    f"The source {name!r} runs dry: the stage draws {count} rows, {size} rows may be passed "
                    f"{limit:g} times; lower its weight, raise max_passes or shorten the stage."
                )

    def describe(self) -> dict[str, Any]:
        """Return what defines the sequence as plain JSON, below 1 kB for a handful of sources."""
        # `skipped_rows` tells a later stage where its replay begins (see `SeenRows`), without the mixture at hand.
        skipped = dict(zip(self.names, self._apportionment.counts(self.first_sample), strict=True))
        return {
            "seed": self.seed,
            "sources": {name: dict(entry) for name, entry in self._identities().items()},
            "weights": _by_text(self.weights),
            **({"first_sample": self.first_sample, "skipped_rows": skipped} if self.first_sample else {}),
            **({"changes": {str(at): _by_text(later) for at, later in self.changes.items()}} if self.changes else {}),
        }

    def _identities(self) -> dict[str, dict[str, Any]]:
        if self._described is None:
            self._described = {name: identity(rows) for name, rows in self.sources.items()}
        return self._described

    def like(self, description: Mapping[str, Any]) -> "ReplayMixture":
        """Return the mixture of a saved description over the datasets of this one.

        Raises:
            ValueError: if a source is missing or holds other rows than the saved one.
        """
        for name, saved in description["sources"].items():
            refuse_unknown("source", name, self.names)
            refuse_other_rows(name, self.sources[name], saved)
        return ReplayMixture(
            {name: self.sources[name] for name in description["sources"]},
            _saved_weights(description["weights"]),
            seed=description["seed"],
            max_passes=self.max_passes,
            first_sample=description.get("first_sample", 0),
            changes=_saved_changes(description),
        )

    def _locate(self, samples: Integers) -> tuple[Integers, Integers]:
        sources, ordinals = self._apportionment.assign(samples)
        for number, (size, key) in enumerate(zip(self.sizes, self._keys, strict=True)):
            mine = np.flatnonzero(sources == number)
            # A stream cannot be shuffled by index: every pass has its own order.
            ordered = is_streamed(self._rows[number])
            ordinals[mine] = ordinals[mine] % size if ordered else permuted(ordinals[mine], size, key)
        return sources, ordinals

    def _by_start(self, weights: Weights | Mapping[int, Weights], first: int = 0) -> dict[int, dict[str, float]]:
        if not isinstance(weights, Mapping) or not all(isinstance(key, int) for key in weights):
            return {0: self._shares(cast(Weights, weights))}
        by_start = {
            start: self._shares(shares) for start, shares in sorted(cast(Mapping[int, Weights], weights).items())
        }
        if next(iter(by_start), None) != first:
            raise ValueError(
                f"The weights of the mixture begin at the samples {list(by_start)}; the first must be {first}."
            )
        return by_start

    def _shares(self, weights: Weights) -> dict[str, float]:
        if not isinstance(weights, Mapping):
            if len(weights) != len(self.names):
                raise ValueError(
                    f"The mixture has {len(self.names)} sources and {len(weights)} weights; give one each."
                )
            weights = dict(zip(self.names, weights, strict=True))
        for name in weights:
            refuse_unknown("source", name, self.names)
        # Recorded weights do not name the sources that came later.
        names = [name for name in self.names if name in weights] if self._is_exact else self.names
        shares = {name: float(weights.get(name, 0.0)) for name in names}
        if any(not 0 <= share <= 1 for share in shares.values()):
            raise ValueError(f"The weights of the mixture are {shares}; each must lie between 0 and 1.")
        total = sum(shares.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"The weights of the mixture sum to {total:g}; make them sum to 1.")
        if self._is_exact:
            return shares
        # Within the tolerance above the shares are made exact: `Apportionment` needs rows that sum to 1.
        return {name: share / total for name, share in shares.items()}

    def _limits(self, max_passes: float | Mapping[str, float] | None) -> dict[str, float]:
        if max_passes is None:
            return {}
        if not isinstance(max_passes, Mapping):
            return dict.fromkeys(self.names, float(max_passes))
        for name in max_passes:
            refuse_unknown("source", name, self.names)
        return {name: float(limit) for name, limit in max_passes.items()}


class SeenRows(Dataset[Row]):
    """The rows of a source that an earlier stage saw, in the order in which it saw them.

    Replay from the whole source would also draw rows that the model has never seen.

    Args:
        rows (`Rows`): the source.
        name (`str`): its name in the earlier stage.
        seed (`int`): of the earlier mixture.
        count (`int`): how many samples the earlier stage drew from it.
        start (`int`): how many the earlier mixture had skipped, see `ReplayMixture.after`.

    Example:

    ```python
    >>> seen = SeenRows(english, name="english", seed=0, count=6_400)
    >>> mixture = ReplayMixture({"german": german, "english": seen}, [0.75, 0.25])
    ```
    """

    def __init__(self, rows: Rows, *, name: str, seed: int, count: int, start: int = 0) -> None:
        # After a whole pass every row was seen, so there are never more seen rows than the source has.
        self.rows, self.key, self.start, self.count = rows, key_of(seed, name), start, min(count, len(rows))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.count:
            raise IndexError(f"Row {index} is outside the {self.count} rows that the earlier stage saw.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Return several rows at once."""
        # The same key and the same ordinals as in the earlier mixture, so these are the rows that it drew, and no list
        # of them is stored.
        ordinals, size = self.start + np.asarray(indices, dtype=np.int64), len(self.rows)
        places = ordinals % size if is_streamed(self.rows) else permuted(ordinals, size, self.key)
        return fetch(self.rows, places.tolist())


def same_sequence(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tell whether two descriptions define one sequence. Older ones have no `content`; it is taken as equal."""

    def comparable(description: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        sources = {
            name: {key: value for key, value in entry.items() if key in other["sources"].get(name, {})}
            for name, entry in description["sources"].items()
        }
        return {**description, "sources": sources}

    return comparable(first, second) == comparable(second, first)


def _by_text(by_start: Mapping[int, Any]) -> dict[str, Any]:
    return {str(start): value for start, value in by_start.items()}


def _saved_weights(weights: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    return {int(start): shares for start, shares in weights.items()}


def _saved_changes(description: Mapping[str, Any]) -> dict[int, dict[int, dict[str, float]]]:
    return {int(point): _saved_weights(later) for point, later in description.get("changes", {}).items()}
