"""Read the documents of a corpus: anything `load_dataset` reads, or local text, JSON lines and parquet."""

import gzip
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset

from hf_warmscale.refusals import refuse_unknown

FORMATS = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SNIFFED = 4096


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
        text_column (`str`): where the text is.
        cache_dir (`str`, *optional*): of `datasets`.

    Raises:
        FileNotFoundError: if a local path does not exist.
        ValueError: for an empty or binary file, mixed or unknown formats, or a missing column.
    """
    dataset = _load(source, subset, split=split, cache_dir=cache_dir)
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
    stream = _load(source, subset, split=split, streaming=True)
    first = next(iter(stream.take(1)), None)
    if first is None:
        raise ValueError(f"The stream {source} holds no document; name another one.")
    refuse_unknown(f"column in {source}", text_column, first)
    return stream.select_columns([text_column])


def _load(source: str | os.PathLike[str], subset: str | None, *, split: str, **options: Any) -> Any:
    path = Path(source)
    if path.exists():
        dataset = _load_files(_files(path), **options)
    elif path.suffix in FORMATS or path.suffix == ".gz" or path.is_absolute():
        raise FileNotFoundError(f"There is no file or folder {source}; check the path.")
    else:
        dataset = load_dataset(str(source), subset, split=split, **options)
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        raise ValueError(f"The dataset {source} has the splits {', '.join(dataset)}; name one.")
    return dataset


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _format(file) is not None)
    if not files:
        raise ValueError(f"The folder {path} holds no {', '.join(FORMATS)} files; name another one.")
    for file in files:
        _refuse_unreadable(file)
    return files


def _load_files(files: list[Path], **options: Any) -> Any:
    formats = {_format(file) for file in files}
    if len(formats) > 1:
        raise ValueError(f"The folder {files[0].parent} mixes {', '.join(map(str, formats))} files; split it.")
    builder = formats.pop()
    if builder is None:
        raise ValueError(f"{files[0]} is of no known format; known are {', '.join(FORMATS)}, also with .gz.")
    names = [str(file) for file in files]
    if builder == "text":
        options["sample_by"] = "document"
    try:
        return load_dataset(builder, data_files=names, split="train", **options)
    except Exception as error:  # the builders wrap whatever went wrong in errors of their own
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{names[0]} cannot be read as {builder}: {cause}") from error


def _format(file: Path) -> str | None:
    return FORMATS.get(file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix)


def _refuse_unreadable(file: Path) -> None:
    if file.stat().st_size == 0:
        raise ValueError(f"The file {file} is empty; remove it or fill it.")
    if _format(file) == "parquet":
        return
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            head = stream.read(SNIFFED)
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"The file {file} is not gzip ({error}); rename or repair it.") from error
    # A character cut at the end of the sniffed part is no fault.
    text = head.decode("utf-8", errors="replace").rstrip("\N{REPLACEMENT CHARACTER}")
    if b"\0" in head or "\N{REPLACEMENT CHARACTER}" in text:
        raise ValueError(f"The file {file} is not UTF-8 text; give text, JSON lines or parquet.")
