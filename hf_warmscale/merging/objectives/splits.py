"""The split that a search minimises on and the split that judges its winner."""

from collections.abc import Mapping, Sequence

from hf_warmscale.evaluation.bootstrap import MIN_DOCUMENTS
from hf_warmscale.merging.objectives.objective import Objective


def split_documents(texts: Sequence[object], name: str) -> tuple[list[str], list[str]]:
    """Deal documents into two splits, each text once: a text in both would let the search see what judges it.

    Args:
        texts (`Sequence`): the documents.
        name (`str`): their name in an error.

    Raises:
        ValueError: if one is not a string, or there are too few for two splits.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"Document {number} of the evaluation data is {text!r}; give strings.")
    different = [text for text in dict.fromkeys(map(str, texts)) if text.strip()]
    if len(different) < 2 * MIN_DOCUMENTS:
        raise ValueError(
            f"{name} has {len(different)} different documents that are not empty; a search needs at least "
            f"{2 * MIN_DOCUMENTS}, half to choose on and half to judge by."
        )
    # Alternating, not halves: files are often sorted by source or date.
    return different[::2], different[1::2]


def check_splits(
    select: Mapping[str, Objective], confirm: Mapping[str, Objective], limits: Mapping[str, float]
) -> None:
    """Check the domains of both splits, and their limits, before any work is done.

    Args:
        select (`Mapping[str, Objective]`): what the search sees, by domain.
        confirm (`Mapping[str, Objective]`): what judges the winner, by domain.
        limits (`Mapping[str, float]`): nats per token, of domains that are not minimised.

    Raises:
        ValueError: if the splits have other domains or share a document, if confirm has too few for an interval, or
            if a limit fits no domain, is no number, or leaves none to improve.
    """
    if select.keys() != confirm.keys():
        raise ValueError(f"select has the domains {list(select)} and confirm {list(confirm)}; give both the same.")
    for domain, limit in limits.items():
        if domain not in select:
            raise ValueError(f"There is a limit for {domain!r}, which is not one of the domains {list(select)}.")
        if not 0 <= limit < float("inf"):
            raise ValueError(f"The limit of {domain!r} is {limit}; it must be a number of nats, 0 or more.")
    if len(limits) == len(select):
        raise ValueError(f"All domains ({', '.join(limits)}) have limits, so none is left to improve; leave one out.")
    for domain, judge in confirm.items():
        # None at all means a function, whose examples are not known before it is called.
        if 0 < len(judge.digests) < MIN_DOCUMENTS:
            raise ValueError(
                f"confirm has {len(judge.digests)} different document in {domain!r}; an interval needs at least "
                f"{MIN_DOCUMENTS}."
            )
    shared = _documents(select) & _documents(confirm)
    if shared:
        raise ValueError(
            f"{len(shared)} documents are in select and in confirm (sha256 {min(shared)[:12]}... is one); the confirm "
            "split must hold what the search never sees."
        )


def _documents(split: Mapping[str, Objective]) -> frozenset[str]:
    return frozenset(digest for objective in split.values() for digest in objective.digests)
