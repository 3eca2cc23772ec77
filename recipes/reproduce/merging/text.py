"""Training tokens without the held-out documents, and the held-out documents.

python recipes/reproduce/merging/text.py --corpora CORPORA --output held-out.jsonl    (for `warmscale merge`)
"""

import argparse
import gzip
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent / "mup"))
from tokens import END_OF_TEXT, prepare_tokens  # the tokenizer of the muP study


def prepare_training(study: dict[str, Any], corpora: Path, tokens: Path, cache: Path) -> Path:
    """Write `train.npy` and `validation.npy` of the domains in training to `cache`, unless they are there."""
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "train.npy").exists():
        tokenizer = Tokenizer.from_file(str(prepare_tokens(corpora, tokens) / "tokenizer.json"))
        end = [tokenizer.token_to_id(END_OF_TEXT)]
        splits = {"validation": read(study, corpora, "validation"), "train": kept_for_training(study, corpora)}
        for split, documents in splits.items():
            ids = [np.array(encoding.ids + end, dtype=np.uint16) for encoding in tokenizer.encode_batch(documents)]
            np.save(cache / f"{split}.npy", np.concatenate(ids))
    return cache


def load_tokenizer(tokens: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the models."""
    ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    return PreTrainedTokenizerFast(tokenizer_file=str(tokens / "tokenizer.json"), **ends)


def kept_for_training(study: dict[str, Any], corpora: Path) -> list[str]:
    """Return the training documents without those that are held out."""
    every = study["held_out"]["every"]
    return [text for index, text in enumerate(read(study, corpora, "train")) if index % every]


def held_out(study: dict[str, Any], corpora: Path, kind: str = "in") -> list[str]:
    """Return a piece of every held-out document, each once; of the domains in training or out of it."""
    documents = read(study, corpora, "validation", kind)
    documents += read(study, corpora, "train", kind)[:: study["held_out"]["every"]]
    skip, size = study["held_out"]["skip"], study["held_out"]["characters"]
    return [text for text in dict.fromkeys(each[skip : skip + size] for each in documents) if len(text) == size]


def splits(study: dict[str, Any], corpora: Path, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Return the documents to select on and to confirm on, which the seed decides, and those of the test."""
    sizes = study["held_out"]
    documents = held_out(study, corpora)
    order = np.random.default_rng(0).permutation(len(documents))
    test, pool = order[: sizes["test"]], order[sizes["test"] :]
    pool = np.random.default_rng(seed).permutation(pool)
    select, confirm = pool[: sizes["select"]], pool[sizes["select"] :][: sizes["confirm"]]
    chosen = [[documents[index] for index in part] for part in (select, confirm, test)]
    return chosen[0], chosen[1], chosen[2]


def read(study: dict[str, Any], corpora: Path, split: str, kind: str = "in") -> list[str]:
    """Return the documents of a split, one domain after the other."""
    return [text for domain in study["domains"][kind] for text in read_file(corpora / f"{domain}.{split}.jsonl.gz")]


@cache
def read_file(path: Path) -> tuple[str, ...]:
    """Return the documents of a file, read once."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line)["text"] for line in lines)


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
