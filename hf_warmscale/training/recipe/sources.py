"""Load the data that a configuration names: packed rows, streams, or the rows of either that an earlier stage saw."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.data.documents import stream_documents
from hf_warmscale.training.data.mixture import ReplayMixture
from hf_warmscale.training.data.packing import load_packed, stream_packed
from hf_warmscale.training.data.rows import Rows
from hf_warmscale.training.data.streaming import StreamedRows
from hf_warmscale.training.recipe.fields import StageArguments
from hf_warmscale.training.recipe.yaml_file import as_mapping
from hf_warmscale.training.stage import seen_rows

SHARED_KEYS = ("weight", "seen_by", "max_passes", "name")
PACKED_KEYS = ("path", *SHARED_KEYS)
STREAM_NEEDS = ("stream", "num_rows", "sequence_length")
STREAM_KEYS = (*STREAM_NEEDS, "subset", "split", "text_column", "split_special_tokens", *SHARED_KEYS)


def load_mixture(arguments: StageArguments, tokenizer: PreTrainedTokenizerBase | None) -> ReplayMixture:
    """Load the sources of a stage.

    Raises:
        ValueError: if a key is unknown, a source has no data or no weight, the data were packed with another
            tokenizer, or a source is replayed that no earlier stage saw.
    """
    if arguments.mixture is None:
        raise ValueError("The configuration names no data; add mixture: {name: {path: PACKED, weight: 1.0}}.")
    sources: dict[str, Rows] = {}
    weights: dict[str, Any] = {}
    limits: dict[str, float] = {}
    for name, entry in as_mapping("mixture", arguments.mixture).items():
        settings = as_mapping(f"mixture.{name}", entry)
        _check_keys(name, settings)
        sources[name] = _seen(name, settings, _load_rows(settings, tokenizer))
        weights[name] = settings["weight"]
        if "max_passes" in settings:
            limits[name] = settings["max_passes"]
    return ReplayMixture(sources, weights_by_start(weights), arguments.mixture_seed, max_passes=limits)


def weights_by_start(weights: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Return the weights of all sources by the sample at which they begin.

    Args:
        weights (`Mapping`): by source: one number, or numbers by the sample at which each begins.

    Raises:
        ValueError: if a weight is no number, or none begins at sample 0.

    Example:

    ```python
    >>> weights_by_start({"new": {0: 0.9, 800: 0.5}, "old": {0: 0.1, 800: 0.5}})
    {0: {'new': 0.9, 'old': 0.1}, 800: {'new': 0.5, 'old': 0.5}}

    ```
    """
    by_source = {name: _numbers(name, weight) for name, weight in weights.items()}
    starts = sorted({start for numbers in by_source.values() for start in numbers})
    return {
        start: {name: numbers[max(at for at in numbers if at <= start)] for name, numbers in by_source.items()}
        for start in starts
    }


def _numbers(name: str, weight: Any) -> dict[int, float]:
    try:
        # On the command line the samples are text: keys of JSON.
        numbers = {int(start): float(share) for start, share in weight.items()} if isinstance(weight, Mapping) else {}
        numbers = numbers or {0: float(weight)}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The weight of the source {name!r} is {weight!r}; give a number, or numbers by sample, as in "
            "{0: 0.9, 800: 0.5}."
        ) from error
    if 0 not in numbers:
        raise ValueError(f"The weights of the source {name!r} begin at sample {min(numbers)}; give one for sample 0.")
    return numbers


def load_evaluation(arguments: StageArguments, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Dataset] | None:
    """Load the packed evaluation data of each domain."""
    if arguments.evaluation is None:
        return None
    paths = as_mapping("evaluation", arguments.evaluation)
    return {name: load_packed(path, tokenizer=tokenizer) for name, path in paths.items()}


def _check_keys(name: str, settings: Mapping[str, Any]) -> None:
    for key in settings:
        refuse_unknown(f"key in mixture.{name}", key, STREAM_KEYS if "stream" in settings else PACKED_KEYS)
    needed = STREAM_NEEDS if "stream" in settings else ("path",)
    missing = [key for key in (*needed, "weight") if key not in settings]
    if missing:
        raise ValueError(f"The source {name!r} of the mixture needs {' and '.join(missing)}.")


def _load_rows(settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> Rows:
    if "stream" not in settings:
        return load_packed(settings["path"], tokenizer=tokenizer)  # type: ignore[no-any-return]  # datasets is untyped
    if tokenizer is None:
        raise ValueError(f"The stream {settings['stream']} needs a tokenizer; set tokenizer_name_or_path.")
    named = {key: settings[key] for key in ("subset", "split", "text_column") if key in settings}
    documents = stream_documents(settings["stream"], **named)
    rows = stream_packed(
        documents,
        tokenizer,
        sequence_length=settings["sequence_length"],
        text_column=settings.get("text_column", "text"),
        split_special_tokens=settings.get("split_special_tokens"),
        source=settings["stream"],
    )
    return StreamedRows(rows, settings["num_rows"])


def _seen(name: str, settings: Mapping[str, Any], rows: Rows) -> Rows:
    if "seen_by" not in settings:
        return rows
    original = settings.get("name", name)
    return seen_rows(settings["seen_by"], {original: rows})[original]
