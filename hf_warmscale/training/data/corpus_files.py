"""The files of a local corpus, in the order in which their documents are read."""

from pathlib import Path

BUILDERS = {".txt": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""The builder of `datasets` for each suffix; the text formats also with `.gz`."""


def builder_of(file: Path) -> str | None:
    """Return the builder of `datasets` that reads a file, or `None`."""
    return BUILDERS.get(file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix)


def corpus_files(path: Path) -> list[Path]:
    """Return the files of a corpus: the file itself, or those below a folder, sorted.

    Raises:
        ValueError: if there are none, one is empty, or their formats are mixed or unknown.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if builder_of(file) is not None)
    if not files:
        raise ValueError(f"The folder {path} holds no {', '.join(BUILDERS)} files; name another one.")
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"The file {file} is empty; remove it or fill it.")
    builders = {builder_of(file) for file in files}
    if len(builders) > 1:
        raise ValueError(f"The folder {path} mixes {', '.join(sorted(map(str, builders)))} files; split it.")
    if builders == {None}:
        raise ValueError(f"The format of {files[0]} is unknown; known are {', '.join(BUILDERS)}, also with .gz.")
    return files
