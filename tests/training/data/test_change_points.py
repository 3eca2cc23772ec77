"""A change of the total batch or of the mixture in the middle of a run: every sample is read once, in its place."""

import random
from ast import literal_eval
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from hf_warmscale.training.data.batch_sizes import BatchChange, BatchSizes, batch_plan
from hf_warmscale.training.data.batches import StageSamples
from hf_warmscale.training.data.mixture import ReplayMixture, same_sequence

ROWS = {name: [{"input_ids": [1_000 * number + row]} for row in range(90)] for number, name in enumerate("abcd")}


def mixture(weights: Any, names: str = "abc") -> ReplayMixture:
    return ReplayMixture({name: ROWS[name] for name in names}, weights, seed=3)


def located(drawn: ReplayMixture, count: int) -> list[tuple[str, int]]:
    return [(drawn.names[source], row) for source, row in (drawn.locate(sample) for sample in range(count))]


@pytest.mark.parametrize("seed", range(5))
def test_the_steps_cover_the_samples_once(seed: int) -> None:
    """Counted step by step; a plan of the samples at which the sizes begin is the same."""
    draw = random.Random(seed)
    sizes, sample = BatchSizes(draw.randint(1, 9)), 0
    for step in range(40):
        if draw.random() < 0.2:
            sizes = sizes.changed(step=step, samples_per_step=draw.randint(1, 9))
        assert sizes.samples(step) == sample
        sample += sizes.at(step)
    assert sizes.samples(40) == sample
    plan = {0: sizes.first} | {change.sample: change.samples_per_step for change in sizes.changes}
    assert BatchSizes.planned(plan) == sizes
    for step in range(40):
        assert sizes.continued(step=step, plan=plan) == sizes
    stretches = sizes.between(3, 40)
    assert [step for steps, _ in stretches for step in steps] == list(range(3, 40))
    assert all(sizes.at(step) == size for steps, size in stretches for step in steps)
    assert all(one != other for (_, one), (_, other) in pairwise(stretches))
    assert all(sizes.num_steps(sizes.samples(step)) == step for step in range(41))
    assert all(
        sizes.samples(sizes.num_steps(rows) - 1) < rows <= sizes.samples(sizes.num_steps(rows)) for rows in (7, 50)
    )


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (0, "is 0 from sample 0 on; it must be at least 1"),
        ({0: 4, 8: -2}, "is -2 from sample 8 on; it must be at least 1"),
        ({0: 4, 10: 8}, "becomes 8 at sample 10, in the middle of a step of 4 rows; .* sample 8 or 12"),
        ({0: 4, 8: 6, 18: 2}, "becomes 2 at sample 18, in the middle of a step of 6 rows; .* sample 14 or 20"),
        ({8: 4}, r"begins at the samples \[8\]; begin with sample 0"),
        ({0: 4, 16: 8, 8: 2}, r"begins at the samples \[0, 16, 8\]; .* let the others ascend"),
        ({}, r"is {}; give the rows of a step, or the rows by sample, as in {0: 16, 640: 32}"),
        ("half", "is 'half'; give the rows of a step"),
        ({0: 4.0}, r"is {0: 4.0}; give the rows of a step"),
        ({0: True}, r"is {0: True}; give the rows of a step"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(plan: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^total_batch_size {sentence}"):
        batch_plan(plan)


def test_a_plan_begins_where_a_run_stands() -> None:
    """Step 2 begins at sample 10, so the plan's own steps need not fit from sample 0 on."""
    sizes = BatchSizes(5).continued(step=2, plan={0: 2, 7: 3, 16: 7})
    assert sizes == BatchSizes(5, (BatchChange(2, 10, 3), BatchChange(4, 16, 7)))
    assert sizes.upcoming(3) == {13: 3, 16: 7} and sizes.upcoming(4) == {16: 7}
    with pytest.raises(ValueError, match=r"sample 15, in the middle of a step of 3 rows; .* sample 13 or 16"):
        BatchSizes(5).continued(step=2, plan={0: 3, 15: 6})


def test_the_plan_that_a_refusal_names_is_accepted() -> None:
    """Of a run whose total batch was overridden at sample 20, resumed at 26 with a plan that knows nothing of it."""
    run = BatchSizes(4).changed(step=5, samples_per_step=6)
    with pytest.raises(ValueError, match=r"sample 30 or 34, as in {") as refused:
        run.continued(step=6, plan=batch_plan({0: 4, 32: 6}))
    named = literal_eval(str(refused.value).split("as in ")[1].rstrip("."))
    assert named == {0: 4, 20: 6, 26: 4, 30: 6}
    assert run.continued(step=6, plan=batch_plan(named)) == BatchSizes.planned(named)


def test_the_schedule_is_measured_in_samples() -> None:
    sizes = BatchSizes(4).changed(step=10, samples_per_step=12).changed(step=12, samples_per_step=2)
    # With `ahead`, a step stands at its end: the 10 steps of 4 rows, then 2 of three times the rows, then halves.
    assert [sizes.position(step, ahead=1) for step in range(9, 15)] == [9.0, 12.0, 15.0, 15.5, 16.0, 16.5]
    assert [sizes.position(step, ahead=0) for step in range(9, 15)] == [9.0, 10.0, 13.0, 16.0, 16.5, 17.0]
    assert sizes.position(sizes.num_steps(80) - 1, ahead=1) == 19
    assert BatchSizes(7).changed(step=0, samples_per_step=3) == BatchSizes(3)
    assert sizes.changed(step=12, samples_per_step=12).changes == sizes.changes[:1]


@pytest.mark.parametrize("point", [0, 1, 37, 64])
@pytest.mark.parametrize(
    "weights", [{"a": 0.2, "b": 0.1, "c": 0.7}, {"a": 0.31, "b": 0.0, "c": 0.0, "d": 0.69}, {"d": 1.0}]
)
def test_no_row_is_lost_or_drawn_again(weights: dict[str, float], point: int) -> None:
    before = mixture({0: [0.5, 0.3, 0.2], 30: [0.1, 0.6, 0.3]})
    after = mixture(weights, "dcab").continuing(before.describe(), point)
    assert located(after, point) == located(before, point)
    assert after.counts(point) == before.counts(point) | ({"d": 0} if "d" in after.names else {})
    again = mixture([0.1, 0.2, 0.3, 0.4], "abcd").continuing(after.describe(), point + 40)
    for changed, length in ((after, 120), (again, 160)):
        drawn = located(changed, length)
        counts = Counter(name for name, _ in drawn)
        # The first rows of every source, in the order of its pass, each once: as `SeenRows` takes for granted.
        for name, count in counts.items():
            alone = [row for _, row in located(mixture([1.0], name), count)]
            assert [row for source, row in drawn if source == name] == alone
        assert changed.counts(length) == {name: counts[name] for name in changed.names}
        expected = changed.expected_counts(length)
        assert all(abs(counts[name] - expected[name]) <= changed.deviation for name in changed.names)
        assert located(changed.after(50), 70) == drawn[50:120]


def test_a_saved_change_is_read_back_and_nothing_follows_from_an_agreement() -> None:
    before = mixture([0.5, 0.3, 0.2])
    after = mixture([0.2, 0.3, 0.5]).continuing(before.describe(), 41)
    assert after.describe()["changes"] == {"41": {"41": {"a": 0.2, "b": 0.3, "c": 0.5}}}
    assert located(mixture([1.0, 0.0, 0.0]).like(after.describe()), 90) == located(after, 90)
    # Asked for the same shares from here on, a run keeps the past of its record, in whatever order they are named.
    for same in (mixture([0.5, 0.3, 0.2][::-1], "cba"), mixture({0: [0.9, 0.1, 0.0], 60: [0.2, 0.3, 0.5]})):
        shares = (before, 70) if same.names == list("cba") else (after, 70)
        assert same_sequence(same.continuing(shares[0].describe(), shares[1]).describe(), shares[0].describe())
    thirds = mixture([1 / 3, 1 / 3, 1 / 3])
    assert thirds.continuing(thirds.describe(), 5).describe() == thirds.describe()
    with pytest.raises(ValueError, match="has drawn from the source 'c'; keep it in the mixture, with the weight 0"):
        mixture([0.5, 0.5], "ab").continuing(before.describe(), 5)


def test_the_places_of_a_loader_follow_the_change() -> None:
    mixed, sizes = mixture([0.5, 0.3, 0.2]), BatchSizes(4).changed(step=10, samples_per_step=6)
    samples = StageSamples(mixed, 20 * 6, shift=sizes.samples(20) - 20 * 6)
    steps = [samples.__getitems__(range(6 * step, 6 * step + 6)) for step in range(10, 20)]
    read = [row["input_ids"] for step in steps for row in step]
    assert read == [row["input_ids"] for row in mixed.__getitems__(range(40, 100))]
