"""Do the split that a search sees and the split that judges it belong together?"""

from collections.abc import Mapping

from hf_warmscale.evaluation.bootstrap import MIN_DOCUMENTS
from hf_warmscale.merging.yardsticks import Yardstick


def check_splits(
    select: Mapping[str, Yardstick], confirm: Mapping[str, Yardstick], limits: Mapping[str, float]
) -> None:
    """Check the domains of both splits, and their limits, before any work is done.

    Args:
        select (`Mapping[str, Yardstick]`): what the search sees, by domain.
        confirm (`Mapping[str, Yardstick]`): what judges the winner, by domain.
        limits (`Mapping[str, float]`): domains that are no objective, nats per token.

    Raises:
        ValueError: if the splits have other domains or share a document, if confirm has too few for an interval, or
            if a limit fits no domain, is no number, or leaves none to improve.
    """
    if select.keys() != confirm.keys():
        raise ValueError(f"select has the domains {list(select)} and confirm {list(confirm)}; give both the same.")
    for domain, limit in limits.items():
        if domain not in select:
            raise ValueError(f"There is a limit for {domain!r}, which is none of the domains {list(select)}.")
        if not 0 <= limit < float("inf"):
            raise ValueError(f"The limit of {domain!r} is {limit}; it must be a number of nats, 0 or more.")
    if len(limits) == len(select):
        raise ValueError(f"All domains ({', '.join(limits)}) have limits, so none is left to improve; leave one out.")
    for domain, judge in confirm.items():
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


def _documents(split: Mapping[str, Yardstick]) -> frozenset[str]:
    return frozenset(digest for yardstick in split.values() for digest in yardstick.digests)
