"""New words under a strong shift: more merges for the tokenizer, and embeddings for them from their sub-tokens."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Word = tuple[str, ...]
Pair = tuple[str, str]

RARE = 2
"""A pair must occur this often to become a token."""


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], num_new_tokens: int
) -> PreTrainedTokenizerFast:
    """Go on with the training of a BPE tokenizer on texts of a new domain.

    The new merges come after the old ones, so every new token is a sequence of old ones, every old text that holds no
    new token is cut as before, and no new token is out of reach (as tokens of a second tokenizer would be).

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a fast BPE tokenizer with a pre-tokenizer, as those of GPT-2, Llama 3,
            Qwen or SmolLM; it stays as it is.
        texts (`Iterable[str]`): of the new domain.
        num_new_tokens (`int`): how many tokens to add at most; fewer if no pair occurs twice.

    Returns:
        `PreTrainedTokenizerFast`: the same with new tokens, numbered from the old length on.

    Raises:
        ValueError: for another kind of tokenizer, no tokens to add, or texts that repeat nothing.

    Example:

    ```python
    >>> larger = extend_tokenizer(tokenizer, texts, 2_000)
    ```
    """
    if num_new_tokens < 1:
        raise ValueError(f"num_new_tokens is {num_new_tokens}; give a number above 0.")
    backend = _backend(tokenizer)
    merges = learn_merges(count_words(backend, texts), num_new_tokens, known=backend.get_vocab())
    if not merges:
        raise ValueError("The texts repeat no pair of tokens, so there is nothing to learn from them; give more text.")
    return _with_merges(cast(PreTrainedTokenizerFast, tokenizer), merges)


def count_words(backend: Tokenizer, texts: Iterable[str]) -> Counter[Word]:
    """Return how often each word of the texts occurs, as the tokens that it is cut into now."""
    pieces: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
        pieces.update(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    return Counter({tuple(token.value for token in backend.model.tokenize(piece)): n for piece, n in pieces.items()})


def learn_merges(words: Mapping[Word, int], num_merges: int, *, known: Mapping[str, int]) -> list[Pair]:
    """Return the next merges of byte pair encoding: the most frequent pair of neighbours, again and again.

    Args:
        words (`Mapping[Word, int]`): occurrences of each word, as tokens.
        num_merges (`int`): at most.
        known (`Mapping[str, int]`): the vocabulary; a pair that makes one of its tokens is passed over, for merging
            it would change how the tokenizer cuts what it knows.
    """
    current = {number: list(word) for number, word in enumerate(words)}
    counts = dict(enumerate(words.values()))
    pairs: Counter[Pair] = Counter()
    places: dict[Pair, set[int]] = {}
    for number, word in current.items():
        _count_pairs(word, counts[number], number, pairs, places)
    merges: list[Pair] = []
    made = set(known)
    while len(merges) < num_merges and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if pairs[best] < RARE:
            break
        if "".join(best) in made:
            del pairs[best]
            continue
        merges.append(best)
        made.add("".join(best))
        for number in places.pop(best):
            word = current[number]
            _count_pairs(word, -counts[number], number, pairs, places)
            current[number] = word = merged(word, best)
            _count_pairs(word, counts[number], number, pairs, places)
        pairs = +pairs
    return merges


def merged(word: list[str], pair: Pair) -> list[str]:
    """Return a word with a pair of neighbours made one, from the left."""
    result: list[str] = []
    for token in word:
        if result and (result[-1], token) == pair:
            result[-1] = "".join(pair)
        else:
            result.append(token)
    return result


def grow_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extended: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Give a model the tokens of an extended tokenizer, in place, each as the mean of the old tokens it is made of.

    Args:
        model (`PreTrainedModel`): input and output embeddings grow, tied or not; its other weights stay.
        tokenizer (`PreTrainedTokenizerBase`): the one it was trained with.
        extended (`PreTrainedTokenizerBase`): see `extend_tokenizer`; or any other one that keeps the old numbers.

    Returns:
        `PreTrainedModel`: the same object.

    Raises:
        ValueError: if the extended tokenizer gives an old token another number.

    Example:

    ```python
    >>> model = grow_vocabulary(model, tokenizer, larger)
    ```
    """
    old, new = tokenizer.get_vocab(), extended.get_vocab()
    for token, number in old.items():
        if new.get(token) != number:
            raise ValueError(
                f"The token {token!r} is number {number} before and {new.get(token)} after; extend the tokenizer of "
                "the model."
            )
    parts = {number: _sub_tokens(token, tokenizer) for token, number in new.items() if token not in old}
    rows = len(_tables(model)[0])  # more than tokens, where a vocabulary is padded
    model.resize_token_embeddings(max(rows, max(new.values()) + 1), mean_resizing=False)
    with torch.no_grad():
        for table in _tables(model):
            for number, sub_tokens in parts.items():
                table[number] = table[sub_tokens].to(torch.promote_types(table.dtype, torch.float32)).mean(dim=0)
    return model


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """Return the input embeddings, and the output embeddings unless they are the same."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = [cast(Tensor, module.weight) for module in modules if module is not None]
    return weights[:1] if weights[-1] is weights[0] else weights


def _sub_tokens(token: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the old tokens that a new one is made of: without pre-tokenizing, for it may hold a space."""
    numbers = [part.id for part in _backend(tokenizer).model.tokenize(token)]
    return numbers or tokenizer(token, add_special_tokens=False)["input_ids"]


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(backend.model).__name__ if backend is not None else "slow"
    if backend is None or kind != "BPE":
        raise ValueError(f"The tokenizer is of the kind {kind}; only fast BPE tokenizers can be extended.")
    if backend.pre_tokenizer is None:
        raise ValueError("The tokenizer cuts no words before its merges; use one with a pre-tokenizer.")
    return backend


def _with_merges(tokenizer: PreTrainedTokenizerFast, merges: list[Pair]) -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory(prefix="warmscale-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        vocabulary, known = content["model"]["vocab"], content["model"]["merges"]
        as_text = bool(known) and isinstance(known[0], str)
        start = max(tokenizer.get_vocab().values()) + 1
        for number, pair in enumerate(merges, start=start):
            vocabulary["".join(pair)] = number
            known.append(" ".join(pair) if as_text else list(pair))
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        extended: PreTrainedTokenizerFast = type(tokenizer).from_pretrained(folder)
    return extended


def _count_pairs(word: list[str], count: int, number: int, pairs: Counter[Pair], places: dict[Pair, set[int]]) -> None:
    for pair in pairwise(word):
        pairs[pair] += count
        if count > 0:
            places.setdefault(pair, set()).add(number)
