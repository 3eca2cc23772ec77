"""Every prediction is in exactly one window, every window in exactly one batch, every batch on exactly one process."""

import pytest

from hf_warmscale.evaluation.windows import Window, batch_by_length, cut_windows, share

LENGTHS = [1, 7, 8, 9, 31, 3]


@pytest.mark.parametrize("max_length", [1, 4, 8, 100])
def test_every_prediction_is_made_once(max_length: int) -> None:
    made = [(w.document, w.start + offset) for w in cut_windows(LENGTHS, max_length) for offset in range(w.length)]
    assert sorted(made) == [(document, at) for document, length in enumerate(LENGTHS) for at in range(length)]
    assert all(window.length <= max_length for window in cut_windows(LENGTHS, max_length))


@pytest.mark.parametrize("batch_tokens", [1, 8, 20, 1000])
def test_batches_hold_like_lengths_within_the_budget(batch_tokens: int) -> None:
    batches = batch_by_length(cut_windows(LENGTHS, 8), batch_tokens)
    assert sorted((w.document, w.start) for batch in batches for w in batch) == sorted(
        (w.document, w.start) for w in cut_windows(LENGTHS, 8)
    )
    assert all(len(batch) == 1 or len(batch) * batch[0].length <= batch_tokens for batch in batches)
    lengths = [window.length for batch in batches for window in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_batches_do_not_depend_on_the_order_of_the_windows() -> None:
    windows = cut_windows(LENGTHS, 8)
    assert batch_by_length(windows, 20) == batch_by_length(windows[::-1], 20)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_share_the_batches_in_equal_rounds(world_size: int) -> None:
    batches = [(Window(index, 0, 1),) for index in range(5)]
    shares = [share(batches, rank, world_size) for rank in range(world_size)]
    assert len({len(mine) for mine in shares}) == 1
    assert sorted(batch[0].document for mine in shares for batch in mine if batch) == list(range(5))
