"""Two ranks evaluate and resume as one rank does, also where rows do not divide evenly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_warmscale.training.domains import SharedEvaluation
from tests.processes import launch
from tests.training.ranks_worker import STEPS, main


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11, 13, 16])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_row_counts_once_on_any_number_of_ranks(count: int, ranks: int) -> None:
    """Each batch has its own mean; batches are dealt out in turn and filled up with rows from the beginning."""
    batch = 2
    values = torch.arange(float(count)) + 1
    rows = [{"input_ids": [0]} for _ in range(count)]
    means = [
        (values[start : start + batch].mean(), len(values[start : start + batch])) for start in range(0, count, 2)
    ]
    expected = sum(float(mean) * size for mean, size in means) / count
    sums = []
    for rank in range(ranks):
        shared = SharedEvaluation(rows, batch, rank=rank, num_ranks=ranks, device=torch.device("cpu"))
        for number in range(rank, -(-len(means) // ranks) * ranks, ranks):
            filled = torch.cat([values, values, values, values]).repeat(8)[number * batch : (number + 1) * batch]
            inputs, left = shared.next_batch({"labels": filled, "name": "kept"})
            assert left in (0, len(inputs["labels"])) and inputs["name"] == "kept"
            shared.add(inputs["labels"].mean(), left)
        sums.append(shared)
    together = torch.cat([shared._sums[None] for shared in sums])
    assert sums[0].loss(lambda mine: together) == pytest.approx(expected)


def test_rows_laid_end_to_end_are_cut_by_their_tokens() -> None:
    rows = [{"input_ids": [0] * length} for length in (3, 5, 2)]
    shared = SharedEvaluation(rows, 2, rank=1, num_ranks=2, device=torch.device("cpu"))
    inputs, left = shared.next_batch({"labels": torch.arange(5)[None], "position_ids": torch.arange(5)[None]})
    assert left == 1
    assert {key: value.tolist() for key, value in inputs.items()} == {"labels": [[0, 1]], "position_ids": [[0, 1]]}


def run(folder: Path, ranks: int) -> list[dict[str, Any]]:
    folder.mkdir()
    assert launch(main, folder, ranks=ranks) == [0] * ranks
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_are_one(tmp_path: Path) -> None:
    (one,), two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    assert [seen["world_size"] for seen in two] == [2, 2] and one["world_size"] == 1
    for seen in two:
        assert seen["resumed"] and one["resumed"]
        assert seen["first"] == pytest.approx(one["first"], rel=1e-6)
        assert seen["tokens"] == one["tokens"]
        # The losses by source too, in steps of which a rank, or both, have no label, and behind a change of the total
        # batch.
        assert len(seen["losses"]) == len(one["losses"]) == STEPS
        for mine, expected in zip(seen["losses"], one["losses"], strict=True):
            assert mine == pytest.approx(expected, rel=1e-4)
