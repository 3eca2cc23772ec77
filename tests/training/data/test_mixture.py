"""Source and row of a sample depend on the seed and its index alone."""

import json
import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from datasets import Dataset as HFDataset
from torch.utils.data import DataLoader

from hf_warmscale.training import ReplayMixture, SeenRows
from hf_warmscale.training.data.apportionment import Apportionment
from hf_warmscale.training.data.batches import SOURCE_NUMBER, StageSamples
from hf_warmscale.training.data.mixture import same_sequence
from hf_warmscale.training.data.permutation import key_of, permuted


class Numbers:
    """Rows without memory: row i holds the number i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": [index]}


SHARES = [
    [1.0],
    [0.95, 0.05],
    [0.995, 0.005],
    [1 / 3, 1 / 3, 1 / 3],
    [0.7, 0.2, 0.1],
    [0.97, 0.01, 0.01, 0.01],
    [0.4, 0.35, 0.2, 0.05],
    [0.5, 0.2, 0.1, 0.1, 0.1],
    [0.5, 0.3, 0.1, 0.05, 0.02, 0.01, 0.01, 0.01],
]


# ---- The rows of a pass ----


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 100, 4_097])
def test_every_pass_holds_each_row_once(size: int) -> None:
    sequence = permuted(np.arange(3 * size), size, key_of(0, "a")).reshape(3, size)
    assert (np.sort(sequence, axis=1) == np.arange(size)).all()


def test_passes_differ_and_so_do_seeds_and_names() -> None:
    orders = [tuple(permuted(np.arange(100) + 100 * p, 100, key_of(seed, name)))
              for p, seed, name in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]]  # fmt: skip
    assert len(set(orders)) == 4


def test_any_place_is_found_without_its_predecessors() -> None:
    places = np.asarray([7, 10**12 + 3, 99, 0])
    alone = [int(permuted(places[i : i + 1], 1_000, 5)[0]) for i in range(4)]
    assert permuted(places, 1_000, 5).tolist() == alone


def test_all_orders_of_four_rows_are_about_equally_frequent() -> None:
    """24 orders over 48,000 passes: 2,000 each with a standard deviation of 44."""
    orders = Counter(map(tuple, permuted(np.arange(4 * 48_000), 4, key_of(0, "a")).reshape(-1, 4).tolist()))
    assert set(orders) == set(permutations(range(4)))
    assert all(1_750 < count < 2_250 for count in orders.values())


# ---- The source of a sample ----


@pytest.mark.parametrize("shares", SHARES)
def test_counts_stay_within_one_of_their_expectation(shares: list[float]) -> None:
    apportionment = Apportionment([0], np.asarray([shares]))
    sources, ordinals = apportionment.assign(np.arange(50_000))
    for source, share in enumerate(shares):
        counts = np.cumsum(sources == source)
        assert np.abs(counts - np.arange(1, 50_001) * share).max() < 1
        assert (ordinals[sources == source] == np.arange(counts[-1])).all()
        assert apportionment.counts(12_345)[source] == counts[12_344]


def test_counts_follow_weights_that_change() -> None:
    weights = np.asarray([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05], [0.0, 0.3, 0.7]])
    apportionment = Apportionment([0, 1_001, 3_003], weights)
    sources, ordinals = apportionment.assign(np.arange(6_000))
    expected = np.cumsum(np.repeat(weights, [1_001, 2_002, 2_997], axis=0), axis=0)
    for source in range(3):
        counts = np.cumsum(sources == source)
        assert np.abs(counts - expected[:, source]).max() < 1
        assert (ordinals[sources == source] == np.arange(counts[-1])).all()
    assert apportionment.expected(6_000) == pytest.approx(expected[-1].tolist())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 9, 12, 20, 30])
@pytest.mark.parametrize("segments", [1, 3])
def test_counts_of_up_to_thirty_sources_stay_within_the_bound(count: int, segments: int) -> None:
    generator = np.random.default_rng(count)
    starts = [0, 700, 3_100][:segments]
    lengths = np.diff([*starts, 6_000])
    for concentration in (0.1, 0.5, 5.0, 5.0, 0.5, 0.1):
        weights = generator.dirichlet(np.full(count, concentration), size=segments)
        apportionment = Apportionment(starts, weights)
        sources, _ = apportionment.assign(np.arange(6_000))
        counts = np.cumsum(sources[:, None] == np.arange(count), axis=0)
        expected = np.cumsum(np.repeat(weights, lengths, axis=0), axis=0)
        assert np.abs(counts - expected).max() <= apportionment.deviation + 1e-9
        if segments == 1:
            assert apportionment.deviation < (1.0001 if count <= 4 else 1.7)


def test_the_bound_of_a_mixture_is_nearly_reached() -> None:
    """Two sources: half a sample, which rounding does reach. So the bound says something."""
    mixed = ReplayMixture({"new": Numbers(9), "old": Numbers(9)}, [0.9, 0.1])
    assert mixed.deviation == pytest.approx(0.5, abs=1e-4)
    sources, _ = Apportionment([0], np.asarray([[0.9, 0.1]])).assign(np.arange(1_000))
    assert np.abs(np.cumsum(sources == 1) - np.arange(1, 1_001) * 0.1).max() == pytest.approx(0.5)


def test_every_global_batch_holds_its_replay() -> None:
    """64 samples at 5%: 3.2 expected, so 3 or 4, never the empty batches of independent draws."""
    mixture = ReplayMixture({"new": Numbers(1_000), "old": Numbers(100)}, [0.95, 0.05])
    sources, _ = mixture.locate_range(0, 64 * 500)
    assert set(sources.reshape(500, 64).sum(axis=1).tolist()) == {3, 4}


# ---- The mixture ----


def mixture(seed: int = 0) -> ReplayMixture:
    return ReplayMixture({"new": Numbers(70), "old": Numbers(9)}, {"new": 0.9, "old": 0.1}, seed)


def test_a_row_carries_the_name_of_its_source() -> None:
    found = mixture().__getitems__(range(20))
    assert Counter(row["source"] for row in found) == {"new": 18, "old": 2}
    assert all(set(row) == {"input_ids", "source"} for row in found)


def test_single_samples_ranges_and_batches_agree() -> None:
    one = mixture()
    sources, rows = one.locate_range(3_990, 4_200)
    alone = [one[index] for index in range(3_990, 4_200)]
    assert [row["input_ids"][0] for row in alone] == rows.tolist()
    assert [row["source"] for row in alone] == [("new", "old")[source] for source in sources]
    assert mixture().__getitems__(range(3_990, 4_200)) == alone


def test_a_wrapping_source_is_shuffled_anew() -> None:
    sources, rows = mixture().locate_range(0, 90 * 4)
    old = rows[sources == 1].reshape(4, 9)
    assert (np.sort(old, axis=1) == np.arange(9)).all()
    assert len({tuple(order) for order in old}) == 4


def read(workers: int, rank: int, world: int, batch: int) -> list[tuple[int, int]]:
    """Read 96 samples as one rank of many: `batch` rows at a time, rank by rank."""
    mine = [i for start in range(rank * batch, 96, world * batch) for i in range(start, start + batch)]
    loader = DataLoader(
        StageSamples(mixture(), 96), batch_size=batch, sampler=mine, num_workers=workers, collate_fn=list
    )
    return [(row[SOURCE_NUMBER], row["input_ids"][0]) for rows in loader for row in rows]


@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_order_is_that_of_one_rank_and_no_worker(workers: int, world: int) -> None:
    batch = 8 // world
    ranks = [read(workers if rank == 0 else 0, rank, world, batch) for rank in range(world)]
    together = [
        sample for start in range(0, 96 // world, batch) for rank in ranks for sample in rank[start : start + batch]
    ]
    assert together == read(0, 0, 1, 8)


def test_ten_million_samples_fit_in_100_mb_and_the_description_in_1_kb() -> None:
    big = ReplayMixture({"new": Numbers(6_000_000), "old": Numbers(1_000_000)}, {"new": 0.95, "old": 0.05})
    tracemalloc.start()
    sources, rows = big.locate_range(0, 10_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert np.bincount(sources).tolist() == [9_500_000, 500_000]
    assert len(json.dumps(big.describe())) < 1_000
    assert np.bincount(rows[sources == 0][:6_000_000]).max() == 1


def test_a_description_brings_the_sequence_back() -> None:
    ours = ReplayMixture({"new": Numbers(70), "old": Numbers(9)}, {0: [0.5, 0.5], 64: [0.9, 0.1]}, seed=3)
    saved = json.loads(json.dumps(ours.describe()))
    again = mixture().like(saved)
    assert [again[i] for i in range(200)] == [ours[i] for i in range(200)]
    with pytest.raises(ValueError, match="71 rows and the checkpoint saw 70"):
        ReplayMixture({"new": Numbers(71), "old": Numbers(9)}, [0.5, 0.5]).like(saved)


@pytest.mark.parametrize("form", ["list", "torch", "numpy"])
def test_a_row_that_changed_in_the_middle_is_noticed(form: str) -> None:
    """The hash is one of the rows, not of the form in which they are stored."""
    table = [{"input_ids": [row, 2 * row]} for row in range(500)]
    changed = [*table[:250], {"input_ids": [250, 501]}, *table[251:]]

    def mixed(rows: list[dict[str, list[int]]]) -> ReplayMixture:
        data = rows if form == "list" else HFDataset.from_list(rows).with_format(form)
        return ReplayMixture({"new": data}, [1.0])

    saved = json.loads(json.dumps(ReplayMixture({"new": table}, [1.0]).describe()))
    assert mixed(table).describe()["sources"]["new"]["content"] == saved["sources"]["new"]["content"]
    assert mixed(table).like(saved).locate(3) == mixed(table).locate(3)
    with pytest.raises(ValueError, match="'new' holds other rows than the checkpoint saw"):
        mixed(changed).like(saved)
    assert not same_sequence(mixed(changed).describe(), saved)
    del saved["sources"]["new"]["content"]  # a description of 0.1.0
    assert same_sequence(ReplayMixture({"new": table}, [1.0]).describe(), saved)


def test_seen_rows_are_those_the_stage_drew() -> None:
    sources, rows = mixture().locate_range(0, 60)
    seen = SeenRows(Numbers(70), name="new", seed=0, count=mixture().counts(60)["new"])
    assert [seen[index]["input_ids"][0] for index in range(len(seen))] == rows[sources == 0].tolist()
    assert len(SeenRows(Numbers(9), name="old", seed=0, count=100)) == 9


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"new": 0.9, "old": 0.2}, "sum to 1.1"),
        ({"new": 1.1, "old": -0.1}, "between 0 and 1"),
        ({"new": float("nan"), "old": 0.1}, "between 0 and 1"),
        ({"new": 0.9, "odl": 0.1}, "did you mean 'old'"),
        ([1.0], "2 sources and 1 weights"),
        ({64: [0.5, 0.5]}, "the first must be 0"),
    ],
)
def test_bad_weights_are_refused_in_a_sentence(weights: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ReplayMixture({"new": Numbers(5), "old": Numbers(5)}, weights)  # type: ignore[arg-type]


def test_empty_and_dry_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="'old' of the mixture has no rows"):
        ReplayMixture({"new": Numbers(5), "old": Numbers(0)}, [0.5, 0.5])
    capped = ReplayMixture({"new": Numbers(100), "old": Numbers(5)}, [0.9, 0.1], max_passes={"old": 2})
    capped.check_passes(104)
    with pytest.raises(ValueError, match="'old' runs dry"):
        capped.check_passes(120)
    with pytest.raises(IndexError):
        capped[-1]


def test_a_sequence_goes_on_after_any_sample() -> None:
    """What an anneal draws is what its trunk would draw next, and replay of it is what it drew."""
    sources = {"new": Numbers(100), "old": Numbers(30)}
    whole = ReplayMixture(sources, {0: [0.9, 0.1], 70: [0.5, 0.5]}, seed=3)
    rest = whole.after(45).after(5)
    assert [rest.locate(index) for index in range(60)] == [whole.locate(50 + index) for index in range(60)]
    assert rest.counts(60) == {name: whole.counts(110)[name] - whole.counts(50)[name] for name in sources}
    assert rest.like(json.loads(json.dumps(rest.describe()))).locate(7) == rest.locate(7)
    skipped = rest.describe()["skipped_rows"]["old"]
    seen = SeenRows(sources["old"], name="old", seed=3, count=rest.counts(60)["old"], start=skipped)
    drawn = [rest[index] for index in range(60)]
    assert [seen[index]["input_ids"] for index in range(len(seen))] == [
        row["input_ids"] for row in drawn if row["source"] == "old"
    ]
