"""The documents that a search sees, and those that judge it."""

import pytest

from hf_warmscale.merging.objectives.splits import split_documents


def test_no_text_is_in_both_splits() -> None:
    """Whatever is repeated: a text in both would let the search see what judges it."""
    select, confirm = split_documents(["a", "b", "a", "", "c", "b", " \n", "d"], "held-out")
    assert (select, confirm) == (["a", "c"], ["b", "d"])


def test_too_few_documents_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="held-out has 1 different documents that are not empty"):
        split_documents(["a", "a", ""], "held-out")
