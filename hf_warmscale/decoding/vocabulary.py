"""Check that members have one vocabulary, and count the ids that they share."""

import warnings
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.checkpoints import find_tokenizer, require_one_language, shared_ids
from hf_warmscale.decoding.members import Member


def shared_vocabulary(members: Sequence[Member]) -> int:
    """Return how many ids all members know; warn about what differs harmlessly.

    The tokenizers are those that lie where the models were loaded from. Of models without any, only the numbers of
    rows can be compared.

    Args:
        members (`Sequence[Member]`): different models may have different numbers of padding rows.

    Raises:
        ValueError: if two tokenizers disagree; it names the first such token.
    """
    tokenizers = _tokenizers(members)
    known = {role: tokenizer for role, tokenizer in tokenizers.items() if tokenizer is not None}
    rows = {member.role: member.rows for member in members}
    if known:
        remarks = require_one_language(tokenizers)
    elif len(set(rows.values())) > 1:
        remarks = [
            f"The members have {rows} rows and no tokenizers to compare; the first {min(rows.values())} are used."
        ]
    else:
        remarks = []
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    return shared_ids(rows, tokenizers)


def refuse_another_vocabulary(assistant: PreTrainedModel, vocab_size: int, members: Sequence[Member]) -> None:
    """Refuse a draft model that does not speak the language of the members.

    Raises:
        ValueError: if it has another number of logits, or its tokenizer disagrees with theirs.
    """
    draft = Member("assistant", assistant)
    if any(draft.plain is member.plain for member in members):
        return
    if draft.rows != vocab_size:
        raise ValueError(
            f"The assistant has {draft.rows} logits and the combined model {vocab_size}; use the tuned small model as "
            "the assistant, or one of its vocabulary."
        )
    found = {role: tokenizer for role, tokenizer in _tokenizers([*members, draft]).items() if tokenizer is not None}
    require_one_language(found)


def _tokenizers(members: Sequence[Member]) -> dict[str, PreTrainedTokenizerBase | None]:
    """Return the tokenizer of each member by its role, loading each place once."""
    places = {member.role: member.plain.config.name_or_path for member in members}
    loaded = {place: find_tokenizer(place) for place in dict.fromkeys(places.values())}
    return {role: loaded[place] for role, place in places.items()}
