"""Load tokenizers, and decide whether two of them are one language."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from hf_warmscale.checkpoints.source import find_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEWEST_WORDS = 2
"""Tokens beside the added ones. Where files are missing, transformers makes a tokenizer of special tokens alone."""


@dataclass(frozen=True)
class TokenizerComparison:
    """The result of comparing two tokenizers, id by id.

    Args:
        disagreement (`str` or `None`): the first token, by id, on which they differ, as a clause; `None` if every id
            that both have stands for the same token.
        only_first (`tuple[str, ...]`): tokens that were added to the first one alone, by id.
        only_second (`tuple[str, ...]`): tokens that were added to the second one alone, by id.

    Example:

    ```python
    >>> compare_tokenizers(tokenizer, tokenizer)
    TokenizerComparison(disagreement=None, only_first=(), only_second=())
    ```
    """

    disagreement: str | None
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()


def compare_tokenizers(
    first: "PreTrainedTokenizerBase",
    second: "PreTrainedTokenizerBase",
    *,
    names: tuple[str, str] = ("the first", "the second"),
) -> TokenizerComparison:
    """Compare two tokenizers, slow or fast, by the ids of their tokens.

    Tokens that were added to one of them at ids that the other does not use are listed. Every other difference is a
    disagreement, for embeddings and logits of the two models then mean different things. How text is cut into tokens
    is not compared, and neither are chat templates.

    Args:
        first, second (`PreTrainedTokenizerBase`): the tokenizers.
        names (`tuple[str, str]`): what the clause calls them.

    Example:

    ```python
    >>> compare_tokenizers(tokenizer, other).disagreement
    "the token '<s>' has id 0 in the second and is missing in the first, where that id is '<|endoftext|>'"
    ```
    """
    if first is second:
        return TokenizerComparison(None)
    vocabularies = (first.get_vocab(), second.get_vocab())
    added = (first.get_added_vocab(), second.get_added_vocab())
    only: tuple[list[str], list[str]] = ([], [])
    for token in _differing(*vocabularies):
        owner = 0 if token in vocabularies[0] else 1
        if _is_disagreement(token, owner, vocabularies, added[owner]):
            return TokenizerComparison(_clause(token, vocabularies, names))
        only[owner].append(token)
    return TokenizerComparison(None, tuple(only[0]), tuple(only[1]))


def require_one_language(tokenizers: Mapping[str, "PreTrainedTokenizerBase | None"]) -> list[str]:
    """Refuse tokenizers that disagree, and return warnings about what could not be compared or differs harmlessly.

    Args:
        tokenizers (`Mapping[str, PreTrainedTokenizerBase | None]`): by the name of their model; `None` where a model
            comes without one.

    Raises:
        ValueError: if two of them give an id to different tokens; it names the first such token.

    Example:

    ```python
    >>> for warning in require_one_language({"large": load_tokenizer("large"), "small": load_tokenizer("small")}):
    ...     warnings.warn(warning, stacklevel=2)
    ```
    """
    known = {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer is not None}
    remarks = [
        f"{name} has no tokenizer, so its vocabulary was not compared with that of the others."
        for name in tokenizers
        if name not in known and len(tokenizers) > 1
    ]
    for (one, first), (two, second) in combinations(known.items(), 2):
        comparison = compare_tokenizers(first, second, names=(one, two))
        if comparison.disagreement is not None:
            raise ValueError(
                f"{one} and {two} do not share a vocabulary: {comparison.disagreement}; use models of one tokenizer."
            )
        remarks += _added_remarks(one, two, comparison.only_first) + _added_remarks(two, one, comparison.only_second)
    return remarks


def shared_ids(rows: Mapping[str, int], tokenizers: Mapping[str, "PreTrainedTokenizerBase | None"]) -> int:
    """Return how many ids, counted from 0, every model and every tokenizer knows.

    Rows of an embedding beyond the tokenizer are padding: models of one tokenizer may have different numbers of them.

    Args:
        rows (`Mapping[str, int]`): the rows of each model's embedding, by name.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase | None]`): of these models; see `require_one_language`.

    Raises:
        ValueError: if a tokenizer gives ids that its own model has no row for.

    Example:

    ```python
    >>> shared_ids({"large": 49_216, "small": 49_152}, {"large": None, "small": None})
    49152
    ```
    """
    known = {name: num_ids(tokenizer) for name, tokenizer in tokenizers.items() if tokenizer is not None}
    for name, ids in known.items():
        if ids > rows[name]:
            raise ValueError(
                f"The tokenizer of {name} gives ids up to {ids - 1}, but the model has {rows[name]} rows; "
                "use the tokenizer that the model was trained with."
            )
    return min([*rows.values(), *known.values()])


def num_ids(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the largest id of a tokenizer plus 1: the rows that an embedding needs. `len` overlooks gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def load_tokenizer(source: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model, running no code that comes with it.

    Args:
        source (`str` or `PathLike`): a folder, a Hub id, or a Hub id with a revision, `id@revision`.

    Raises:
        FileNotFoundError: if there is no such folder, and no such tokenizer on the Hub or in its cache.
        OSError: if the Hub refuses; see `hub_errors`.
        ValueError: if the folder or the Hub id holds no tokenizer, or one whose vocabulary is missing.

    Example:

    ```python
    >>> tokenizer = load_tokenizer("EleutherAI/pythia-410m@step143000")
    ```
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    folder = find_config(source, kind="tokenizer")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a tokenizer raises what it likes, the Rust library Exception itself
        raise ValueError(
            f"{source} holds no tokenizer that transformers can load; name another folder or a Hub id."
        ) from error
    if not Path(source).expanduser().exists():
        tokenizer.name_or_path = os.fspath(source)  # and not its folder in the cache
    if _lacks_vocabulary(tokenizer):
        raise ValueError(
            f"{source} holds no vocabulary of a tokenizer, only special tokens; copy its tokenizer files."
        )
    return tokenizer


def find_tokenizer(source: str | os.PathLike[str] | None) -> "PreTrainedTokenizerBase | None":
    """Return the tokenizer of a model, or `None` if there is none that works.

    Args:
        source (`str` or `PathLike`, *optional*): see `load_tokenizer`; often the `name_or_path` of a config, which is
            empty for a model that was built in memory.

    Example:

    ```python
    >>> find_tokenizer("small") is None, find_tokenizer("no such folder")
    (False, None)
    ```
    """
    if not source or not os.fspath(source):
        return None
    try:
        return load_tokenizer(source)
    except (OSError, ValueError):
        return None


def _lacks_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> bool:
    return len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()) < FEWEST_WORDS


def _differing(first: Mapping[str, int], second: Mapping[str, int]) -> Iterator[str]:
    """Yield the tokens whose ids differ or are missing on one side, the lowest id first."""
    tokens = [token for token in first.keys() | second.keys() if first.get(token) != second.get(token)]
    yield from sorted(tokens, key=lambda token: (first.get(token, second.get(token)), token))


def _is_disagreement(
    token: str, owner: int, vocabularies: tuple[Mapping[str, int], Mapping[str, int]], added: Mapping[str, int]
) -> bool:
    own, other = vocabularies[owner], vocabularies[1 - owner]
    # A token that the other lacks is harmless only if it was added and the other leaves its id free.
    return token in other or token not in added or own[token] in other.values()


def _clause(token: str, vocabularies: tuple[Mapping[str, int], Mapping[str, int]], names: tuple[str, str]) -> str:
    first, second = (vocabulary.get(token) for vocabulary in vocabularies)
    if first is not None and second is not None:
        return f"the token {token!r} has id {first} in {names[0]} and id {second} in {names[1]}"
    owner, number = (0, first) if first is not None else (1, second)
    taken = [other for other, taken_by in vocabularies[1 - owner].items() if taken_by == number]
    missing = f", where that id is {taken[0]!r}" if taken else ""
    return f"the token {token!r} has id {number} in {names[owner]} and is missing in {names[1 - owner]}{missing}"


def _added_remarks(owner: str, other: str, tokens: tuple[str, ...]) -> list[str]:
    if not tokens:
        return []
    named = ", ".join(repr(token) for token in tokens[:3]) + (", ..." if len(tokens) > 3 else "")
    return [f"{owner} has {len(tokens)} added token(s) that {other} lacks: {named}."]
