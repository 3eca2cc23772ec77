"""Extend a vocabulary for a new domain: more merges in the tokenizer, embeddings from sub-tokens in the model."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Word = tuple[str, ...]
Pair = tuple[str, str]

RARE = 2
"""A pair must occur this often to become a token."""

PER_LAYER_TABLES = ("embed_tokens_per_layer",)
"""Embeddings beside the input embedding, which hold a row per token for all layers together (Gemma 3n)."""

PER_LAYER_FIELD = "vocab_size_per_layer_input"
"""The config field with the number of their rows."""


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], num_new_tokens: int
) -> PreTrainedTokenizerFast:
    """Continue the training of a BPE tokenizer on texts of a new domain.

    The new merges follow the old ones. So every new token is a sequence of old tokens, every token keeps its id, and
    text in which no new merge applies is split as before.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a fast BPE tokenizer with a pre-tokenizer, like those of GPT-2, Llama 3,
            Qwen or SmolLM; it is not changed.
        texts (`Iterable[str]`): texts of the new domain.
        num_new_tokens (`int`): the largest number of tokens to add; fewer are added if no pair occurs twice.

    Returns:
        `PreTrainedTokenizerFast`: the extended tokenizer; its new ids follow the largest old one.

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
        raise ValueError("The texts repeat no pair of tokens, so no token can be learnt from them; give more text.")
    return _with_merges(cast(PreTrainedTokenizerFast, tokenizer), merges)


def count_words(backend: Tokenizer, texts: Iterable[str]) -> Counter[Word]:
    """Return how often each word of the texts occurs; a word is the sequence of its present tokens."""
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
        known (`Mapping[str, int]`): the vocabulary. A pair that makes a known token is skipped, because merging it
            would change how the tokenizer splits text that it knows.
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
        # Ties are broken by the pair itself, so that the result does not depend on the order of the texts.
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if pairs[best] < RARE:
            break
        if "".join(best) in made:
            del pairs[best]
            continue
        merges.append(best)
        made.add("".join(best))
        # `places` may still list words that have lost the pair since; merging changes nothing in them.
        for number in places.pop(best):
            word = current[number]
            _count_pairs(word, -counts[number], number, pairs, places)
            current[number] = word = merged(word, best)
            _count_pairs(word, counts[number], number, pairs, places)
        # Unary plus drops the pairs whose count has fallen to 0.
        pairs = +pairs
    return merges


def merged(word: list[str], pair: Pair) -> list[str]:
    """Return a word with a pair of neighbours merged, from left to right."""
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
    """Add the tokens of an extended tokenizer to a model, in place; each starts as the mean of its old sub-tokens.

    Every table with a row per token grows: the input embedding, the readout with its bias, and per-layer embeddings. A
    new token without old sub-tokens starts as the mean of all old tokens.

    Args:
        model (`PreTrainedModel`): the model; tied embeddings stay tied, and other weights stay the same.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer that it was trained with.
        extended (`PreTrainedTokenizerBase`): the result of `extend_tokenizer`, or another tokenizer that keeps the
            old ids.

    Returns:
        `PreTrainedModel`: the same object.

    Raises:
        ValueError: if the extended tokenizer gives an old token another id, or two tokens one id.

    Example:

    ```python
    >>> model = grow_vocabulary(model, tokenizer, larger)
    ```
    """
    old, new = tokenizer.get_vocab(), extended.get_vocab()
    _refuse_other_ids(old, new)
    parts = {number: _sub_tokens(token, tokenizer) for token, number in new.items() if token not in old}
    known = torch.tensor(sorted(set(old.values())))
    before = [len(table) for table in _token_tables(model)]
    _resize(model, max(new.values()) + 1)
    with torch.no_grad():
        for rows, table in zip(before, _token_tables(model), strict=True):
            # Over the rows of tokens alone: a table may have padding rows, and a tokenizer ids beyond the table.
            mean = _mean_of_rows(table, known[known < rows].to(table.device))
            table[rows:] = mean  # including ids that no token has
            for number, sub_tokens in parts.items():
                table[number] = _mean_of_rows(table, torch.tensor(sub_tokens).to(table.device)) if sub_tokens else mean
    return model


def _refuse_other_ids(old: Mapping[str, int], new: Mapping[str, int]) -> None:
    for token, number in old.items():
        if new.get(token) != number:
            raise ValueError(
                f"The token {token!r} has id {number} before and {new.get(token)} after; extend the tokenizer of the "
                "model."
            )
    shared = [number for number, count in Counter(new.values()).items() if count > 1]
    if shared:
        names = [token for token, number in new.items() if number == shared[0]]
        raise ValueError(f"The tokenizer gives {' and '.join(map(repr, names))} the id {shared[0]}; extend it anew.")


def _resize(model: PreTrainedModel, rows: int) -> None:
    """Give every table of tokens at least `rows` rows. A padded vocabulary has more rows than tokens already."""
    if rows > len(_token_tables(model)[0]):
        model.resize_token_embeddings(rows, mean_resizing=False)
    config = model.config.get_text_config()
    for table in _per_layer_tables(model):
        missing = rows - table.num_embeddings
        if missing > 0:  # transformers resizes input and output embeddings alone
            table.weight.data = torch.cat(
                [table.weight.data, table.weight.data.new_zeros(missing, table.embedding_dim)]
            )
            table.num_embeddings = rows
            setattr(config, PER_LAYER_FIELD, rows)


def _token_modules(model: PreTrainedModel) -> list[nn.Module]:
    modules = (model.get_input_embeddings(), model.get_output_embeddings(), *_per_layer_tables(model))
    return [module for module in modules if module is not None]


def _per_layer_tables(model: PreTrainedModel) -> list[nn.Embedding]:
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in PER_LAYER_TABLES and isinstance(module, nn.Embedding)
    ]


def _token_tables(model: PreTrainedModel) -> list[Tensor]:
    """Return every parameter with a row per token, tied ones once."""
    tables = [
        parameter for module in _token_modules(model) for parameter in (module.weight, getattr(module, "bias", None))
    ]
    return list({id(table): cast(Tensor, table) for table in tables if table is not None}.values())


def _mean_of_rows(table: Tensor, rows: Tensor) -> Tensor:
    return table[rows].to(torch.promote_types(table.dtype, torch.float32)).mean(dim=0).to(table.dtype)


def _sub_tokens(token: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the old tokens that a new one is made of; none if the old tokenizer knows no part of it.

    A learnt token is split by the merges alone: it may hold a space, at which the pre-tokenizer would cut it. An added
    token is plain text, so the whole tokenizer splits it.
    """
    numbers = [part.id for part in _backend(tokenizer).model.tokenize(token)]
    unknown = {tokenizer.unk_token_id} - {None}
    pieces = tokenizer.convert_ids_to_tokens(numbers)
    if "".join(pieces) == token and not unknown & set(numbers):
        return numbers
    return [number for number in tokenizer(token, add_special_tokens=False)["input_ids"] if number not in unknown]


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(backend.model).__name__ if backend is not None else "slow"
    if backend is None or kind != "BPE":
        raise ValueError(f"The tokenizer is of the kind {kind}; only fast BPE tokenizers can be extended.")
    if backend.pre_tokenizer is None:
        raise ValueError(
            "The tokenizer does not split text into words before it merges; use one with a pre-tokenizer."
        )
    return backend


def _with_merges(tokenizer: PreTrainedTokenizerFast, merges: list[Pair]) -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory(prefix="warmscale-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        vocabulary, known = content["model"]["vocab"], content["model"]["merges"]
        as_text = bool(known) and isinstance(known[0], str)
        # Added tokens may follow the vocabulary (Qwen, Llama 3). Their ids are not stored but counted from its length
        # when the file is loaded, so a longer vocabulary would move them onto new tokens. Entries of their own stay.
        vocabulary.update({added["content"]: added["id"] for added in content.get("added_tokens", [])})
        start = max(tokenizer.get_vocab().values()) + 1
        for number, pair in enumerate(merges, start=start):
            vocabulary["".join(pair)] = number
            known.append(" ".join(pair) if as_text else list(pair))
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        extended: PreTrainedTokenizerFast = type(tokenizer).from_pretrained(folder)
    extended.name_or_path = tokenizer.name_or_path  # not that of the temporary folder
    return extended


def _count_pairs(word: list[str], count: int, number: int, pairs: Counter[Pair], places: dict[Pair, set[int]]) -> None:
    for pair in pairwise(word):
        pairs[pair] += count
        if count > 0:
            places.setdefault(pair, set()).add(number)
