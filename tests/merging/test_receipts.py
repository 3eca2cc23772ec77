"""The record of a merge: read back, also that of 0.1.0; that of a newer version is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hf_warmscale.checkpoints import Receipt
from hf_warmscale.evaluation import PairedDifference
from hf_warmscale.merging import MergeReceipt, MergeResult
from hf_warmscale.merging.search.mergeability import Mergeability, look_along

OF_0_1_0 = Path(__file__).with_name("format_0_1_0")


def stored(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((OF_0_1_0 / name).read_text(encoding="utf-8"))
    return content


def test_what_0_1_0_wrote_is_read() -> None:
    receipt = MergeReceipt.from_dict(stored("merge_receipt.json"))
    result = MergeResult.from_dict(stored("merge_result.json"))
    for record, name in ((receipt, "merge_receipt.json"), (result, "merge_result.json")):
        old = stored(name)
        # It wrote the paths of folders, of which the names are left.
        old["inputs"] = [{**each, "source": f"./{Path(each['source']).name}"} for each in old["inputs"]]
        assert record.to_dict() == {"format_version": 1, **old}


def test_a_record_says_what_a_card_needs() -> None:
    receipts: list[Receipt] = [
        MergeReceipt.from_dict(stored("merge_receipt.json")),
        MergeResult.from_dict(stored("merge_result.json")),
    ]
    assert receipts[0].summary().endswith(" by `linear` with the weights 0.3333, 0.3333, 0.3333.")
    assert receipts[1].summary().startswith("Merged from `./checkpoint-100`, `./checkpoint-120`. Merge: better than")
    for receipt, count in zip(receipts, (3, 2), strict=True):
        assert receipt.file_name == "merge_result.json" and len(receipt.sources()) == count


def test_a_merge_that_was_not_accepted_is_made_of_one_checkpoint() -> None:
    result = MergeResult.from_dict({**stored("merge_result.json"), "accepted": False, "best_single": 0})
    assert [Path(source).name for source in result.sources()] == ["checkpoint-100"]


@pytest.mark.parametrize(("kind", "name"), [(MergeReceipt, "merge_receipt"), (MergeResult, "merge_result")])
def test_a_newer_version_is_refused(kind: type[MergeReceipt] | type[MergeResult], name: str) -> None:
    with pytest.raises(ValueError, match="format version 2, and this version of hf_warmscale reads versions up to 1"):
        kind.from_dict({**stored(f"{name}.json"), "format_version": 2})
    for missing in ("inputs", "weights"):
        content = stored(f"{name}.json")
        del content[missing]
        with pytest.raises(ValueError, match=f"The merge_result.json is damaged .'{missing}'."):
            kind.from_dict(content)


def test_infinity_is_null_in_json() -> None:
    difference = PairedDifference(-math.inf, -math.inf, -math.inf, 0.95)
    assert PairedDifference.from_dict(json.loads(json.dumps(difference.to_dict(), allow_nan=False))) == difference
    wall = look_along(lambda weight: math.inf if 0 < weight < 1 else 3.0, (1, 2))
    assert wall.barrier == math.inf and "some merges have no finite loss" in wall.advice
    assert Mergeability.from_dict(json.loads(json.dumps(wall.to_dict(), allow_nan=False))) == wall
