"""Training tokens without the held-out documents, and the held-out documents.

python recipes/reproduce/merging/text.py --corpora CORPORA --output held-out.jsonl    (for `warmscale merge`)
"""

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "corpora"))
from corpora import documents, pack_texts, prepare_tokenizer


def prepare_training(study: dict[str, Any], corpora: Path, work: Path) -> tuple[Path, Path]:
    """Pack the training and the validation text of the domains in training, unless they are there."""
    folders = work / "rows" / "train", work / "rows" / "validation"
    tokenizer = prepare_tokenizer(corpora, work)
    splits = {"train": kept_for_training(study, corpora), "validation": read(study, corpora, "validation")}
    for folder in folders:
        if not folder.exists():
            pack_texts(splits[folder.name], folder, tokenizer, study["sequence_length"], work)
    return folders


def kept_for_training(study: dict[str, Any], corpora: Path) -> list[str]:
    """Return the training documents without those that are held out."""
    every = study["held_out"]["every"]
    return [text for index, text in enumerate(read(study, corpora, "train")) if index % every]


def held_out(study: dict[str, Any], corpora: Path, kind: str = "in") -> list[str]:
    """Return a piece of every held-out document, each once; of the domains in training or out of it."""
    texts = read(study, corpora, "validation", kind)
    texts += read(study, corpora, "train", kind)[:: study["held_out"]["every"]]
    skip, size = study["held_out"]["skip"], study["held_out"]["characters"]
    return [text for text in dict.fromkeys(each[skip : skip + size] for each in texts) if len(text) == size]


def splits(study: dict[str, Any], corpora: Path, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Return the documents to select on and to confirm on, which the seed decides, and those of the test."""
    sizes = study["held_out"]
    texts = held_out(study, corpora)
    order = np.random.default_rng(0).permutation(len(texts))
    test, pool = order[: sizes["test"]], order[sizes["test"] :]
    pool = np.random.default_rng(seed).permutation(pool)
    select, confirm = pool[: sizes["select"]], pool[sizes["select"] :][: sizes["confirm"]]
    chosen = [[texts[index] for index in part] for part in (select, confirm, test)]
    return chosen[0], chosen[1], chosen[2]


def read(study: dict[str, Any], corpora: Path, split: str, kind: str = "in") -> list[str]:
    """Return the documents of a split, one domain after the other."""
    return [text for domain in study["domains"][kind] for text in read_domain(corpora, domain, split)]


@cache
def read_domain(corpora: Path, domain: str, split: str) -> tuple[str, ...]:
    """Return the documents of a file, read once."""
    return tuple(documents(corpora, split, [domain]))


def main() -> None:
    """Write the held-out documents of the domains in training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    study = yaml.safe_load((Path(__file__).parent / "study.yaml").read_text())
    lines = [json.dumps({"text": text}) + "\n" for text in held_out(study, arguments.corpora)]
    arguments.output.write_text("".join(lines))


if __name__ == "__main__":
    main()
