"""Read the documents of a corpus: anything `load_dataset` reads, or local text, JSON lines and parquet."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase

from hf_warmscale.checkpoints.hub_errors import explained_reading, refuse_silence
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.data.corpus_files import BUILDERS, builder_of, corpus_files
from hf_warmscale.training.data.document_faults import clean, first_unreadable


def load_documents(
    source: str | os.PathLike[str],
    *,
    subset: str | None = None,
    split: str = "train",
    text_column: str = "text",
    cache_dir: str | None = None,
) -> Dataset:
    """Load documents as a dataset with one text column.

    Args:
        source (`str` or `PathLike`): a local file or a folder of files (`.txt`, `.md`, `.json`, `.jsonl`, `.parquet`,
            the text formats also with `.gz`), or the name of a dataset. A text file is one document.
        subset (`str`, *optional*): the configuration of a named dataset.
        split (`str`): the split of a named dataset; local files are `train`.
        text_column (`str`): the column that holds the text.
        cache_dir (`str`, *optional*): of `datasets`.

    Raises:
        FileNotFoundError: if a local path or a named dataset does not exist.
        OSError: if the Hub refuses; see `checkpoints.hub_errors`.
        ValueError: if a file is empty or cannot be read (naming file and line), formats are mixed or unknown, or the
            column is missing.
    """
    dataset = _load(source, subset, split=split, column=text_column, cache_dir=cache_dir)
    refuse_unknown(f"column in {source}", text_column, dataset.column_names)
    return dataset.select_columns([text_column])


def stream_documents(
    source: str | os.PathLike[str], *, subset: str | None = None, split: str = "train", text_column: str = "text"
) -> IterableDataset:
    """Open the documents of a corpus as a stream: nothing is downloaded or converted before it is read.

    Args:
        source, subset, split, text_column: see `load_documents`.

    Raises:
        FileNotFoundError, ValueError: as `load_documents`; the first document is read to find the columns.
    """
    stream = _load(source, subset, split=split, column=text_column, streaming=True)
    first = next(readable(stream.take(1), source, text_column), None)
    if first is None:
        raise ValueError(f"The stream {source} holds no document; name another one.")
    refuse_unknown(f"column in {source}", text_column, first)
    return stream.select_columns([text_column])


def read_texts(
    documents: Dataset,
    source: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str,
    split_special_tokens: bool | None = None,
) -> list[str]:
    """Return the texts of loaded documents, or refuse the first that is not text.

    Raises:
        ValueError: naming file and line, see `document_faults`.
    """
    texts = list(readable(documents[text_column], source, text_column))
    end = tokenizer.eos_token if split_special_tokens is None else None
    return clean(texts, range(len(texts)), source, end)


def readable(documents: Any, source: str | os.PathLike[str] | None, column: str) -> Iterator[Any]:
    """Read documents, and say in a sentence where they cannot be read.

    Raises:
        ValueError: naming file and line.
    """
    try:
        yield from documents
    except Exception as error:  # the builders wrap whatever went wrong in errors of their own
        raise unreadable(source, column, error) from error


def _load(source: str | os.PathLike[str], subset: str | None, *, split: str, column: str, **options: Any) -> Any:
    path = Path(source)
    if path.exists():
        dataset = _load_files(path, column, **options)
    elif path.suffix in BUILDERS or path.suffix == ".gz" or path.is_absolute():
        raise FileNotFoundError(f"There is no file or folder {source}; check the path.")
    else:
        dataset = _load_named(str(source), subset, split=split, **options)
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        raise ValueError(f"The dataset {source} has the splits {', '.join(dataset)}; name one.")
    return dataset


def _load_named(name: str, subset: str | None, **options: Any) -> Any:
    refuse_silence(name)
    try:
        return load_dataset(name, subset, **options)
    except (ValueError, DatasetsError, OSError, RuntimeError) as error:
        if isinstance(error, ValueError):
            raise ValueError(f"The dataset {name} cannot be loaded: {_sentence(error)}") from error
        with explained_reading(name, kind="dataset"):
            HfApi().dataset_info(name)  # datasets drops the error of the client on its way, so it is asked again
        raise unreadable(name, "", error) from error


def _sentence(error: Exception) -> str:
    """Return an error of a builder on one line; its second line often names the choices."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def _load_files(path: Path, column: str, **options: Any) -> Any:
    files = corpus_files(path)
    builder = builder_of(files[0])
    if builder == "text":
        options["sample_by"] = "document"
    try:
        return load_dataset(builder, data_files=[str(file) for file in files], split="train", **options)
    except Exception as error:  # the builders wrap whatever went wrong in errors of their own
        raise unreadable(path, column, error) from error


def unreadable(source: str | os.PathLike[str] | None, column: str, error: Exception) -> ValueError:
    """Return the error that names the file and line which a builder could not read."""
    found = None if source is None else first_unreadable(source, column)
    cause = str(error.__cause__ or error).splitlines()[0]
    return ValueError(found or f"{source or 'The stream'} cannot be read: {cause}")
