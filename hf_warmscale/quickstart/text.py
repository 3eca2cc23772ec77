"""Real text that every installation has: documentation strings against source code of the installed packages."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from tqdm import tqdm

Domain = Literal["prose", "code"]
Split = Literal["train", "more", "evaluation", "select", "confirm"]

DOMAINS: tuple[Domain, ...] = ("prose", "code")

END_OF_TEXT = "<|endoftext|>"
"""The special token of the quickstart's tokenizer; the packages that are read spell it now and then."""

DISTRIBUTIONS = (
    "torch",
    "transformers",
    "scipy",
    "matplotlib",
    "numpy",
    "pandas",
    "huggingface_hub",
    "datasets",
    "accelerate",
    "peft",
    "optuna",
)
"""Dependencies of hf-warmscale, so that every machine has them."""

ROUND: tuple[Split, ...] = (
    "train",
    "more",
    "train",
    "evaluation",
    "train",
    "more",
    "train",
    "select",
    "train",
    "more",
    "train",
    "confirm",
)
"""The split of every twelve files in order: `more` is new text for growth, the last three kinds are held out."""

MIN_DOCUMENT, MAX_DOCUMENT = 300, 3_000
"""Bounds on a document, in characters; a longer text becomes several documents."""


@dataclass(frozen=True)
class Document:
    """A piece of text of one domain; all text of a file is in one split."""

    domain: Domain
    split: Split
    text: str


def installed_documents(max_bytes: Mapping[Domain, int]) -> dict[Domain, list[Document]]:
    """Collect text of each domain from the installed packages, in a fixed order, no text twice.

    Args:
        max_bytes (`Mapping[Domain, int]`): how much of each domain, in UTF-8.

    Raises:
        ValueError: if the packages hold too little text.
    """
    found: dict[Domain, list[Document]] = {"prose": [], "code": []}
    sizes: dict[Domain, int] = dict.fromkeys(DOMAINS, 0)
    seen: set[str] = set()
    with tqdm(total=sum(max_bytes.values()), unit="B", unit_scale=True, desc="Reading installed packages") as progress:
        for number, path in enumerate(source_files()):
            if all(sizes[domain] >= max_bytes[domain] for domain in DOMAINS):
                break
            for domain, text in texts_in(path):
                if text not in seen and sizes[domain] < max_bytes[domain]:
                    seen.add(text)
                    found[domain].append(Document(domain, ROUND[number % len(ROUND)], text))
                    size = len(text.encode())
                    sizes[domain] += size
                    progress.update(size)
    for domain, wanted in max_bytes.items():
        if sizes[domain] < wanted // 4:
            raise ValueError(
                f"The installed packages hold {sizes[domain]:,} bytes of {domain} and the run needs {wanted:,}; "
                "use a smaller token budget."
            )
    return found


def source_files() -> Iterator[Path]:
    """Yield the packages' Python files, one of each package in turn, sorted; tests are left out."""
    rows = zip_longest(*(_files_of(name) for name in DISTRIBUTIONS))
    yield from (path for row in rows for path in row if path is not None)


def texts_in(path: Path) -> list[tuple[Domain, str]]:
    """Split a source file into its documentation strings (prose) and the rest of it (code)."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return []
    prose, lines = [], source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                string = node.body[0]
                last = string.end_lineno or string.lineno
                # Blank lines in place of the text, so that the line numbers of later nodes still hold.
                lines[string.lineno - 1 : last] = [""] * (last - string.lineno + 1)
                prose += _pieces(text)
    code = _pieces("\n".join(line for line in lines if line.strip()))
    return [("prose", text) for text in prose] + [("code", text) for text in code]


def _pieces(text: str) -> list[str]:
    pieces = [text[start : start + MAX_DOCUMENT] for start in range(0, len(text), MAX_DOCUMENT)]
    # A document that spells the token would end in its middle; packing refuses it.
    return [piece for piece in pieces if len(piece) >= MIN_DOCUMENT and END_OF_TEXT not in piece]


def _files_of(name: str) -> list[Path]:
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        return []
    kept = sorted(file for file in files if file.suffix == ".py" and not {"tests", "_vendor"} & set(file.parts))
    return [Path(str(file.locate())) for file in kept]
