"""Train the models of the study: a small one, a large one grown from it, and both tuned on each new domain.

    python recipes/reproduce/decoding/train.py --corpora CORPORA --work WORK

Resumable: a model that is in `WORK/models` is not trained again. One thread; some 20 minutes of one core.
"""

import argparse
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hf_warmscale import grow_from_pretrained
from hf_warmscale.checkpoints import save_model

STUDY = Path(__file__).with_name("study.yaml")
END_OF_TEXT = "<|endoftext|>"


def main() -> None:
    """Parse the arguments and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of <domain>.<split>.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens and models")
    arguments = parser.parse_args()
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    prepare_tokens(study, arguments.corpora, arguments.work)
    for name, start, domain, seed in list_runs(study):
        if not (arguments.work / "models" / name).exists():
            train(study, arguments.work, name, start, domain, seed)


def list_runs(study: dict[str, Any]) -> Iterator[tuple[str, str | None, str, int]]:
    """Yield name, name of the model to start from, domain and seed; what others wait for comes first."""
    base, (first, *others), seeds = study["base"], study["domains"], study["seeds"]
    for seed in seeds:
        yield f"small-seed{seed}", None, base, seed
        yield f"small_tuned-{first}-seed{seed}", f"small-seed{seed}", first, seed
        yield f"large-seed{seed}", f"small-seed{seed}", base, seed
    for seed in seeds:
        yield f"large_tuned-{first}-seed{seed}", f"large-seed{seed}", first, seed
    for domain in others:
        for seed in seeds:
            yield f"small_tuned-{domain}-seed{seed}", f"small-seed{seed}", domain, seed
        for seed in seeds:
            yield f"large_tuned-{domain}-seed{seed}", f"large-seed{seed}", domain, seed


def train(study: dict[str, Any], work: Path, name: str, start: str | None, domain: str, seed: int) -> None:
    """Train one model and save it."""
    run, settings = study["runs"][name.partition("-")[0]], study["training"]
    torch.manual_seed(seed)
    model = first_weights(study, work, name, start)
    optimizer = torch.optim.AdamW(model.parameters(), betas=settings["betas"], weight_decay=settings["weight_decay"])
    tokens = np.load(work / "tokens" / f"{domain}.train.npy", mmap_mode="r")
    order = np.random.default_rng([seed, start is not None])
    model.train()
    for step in range(run["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = run["lr"] * schedule(step, run["steps"], settings["warmup_steps"])
        batch = draw(tokens, order, settings["batch_size"], study["data"]["sequence_length"])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        if step % 100 == 0 or step == run["steps"] - 1:
            print(f"{name} step {step} loss {loss.item():.3f}", flush=True)
    save_model(model, work / "models" / name, tokenizer=load_tokenizer(work))


def first_weights(study: dict[str, Any], work: Path, name: str, start: str | None) -> PreTrainedModel:
    """Return the model that a run starts from: a fresh one, a stored one, or for the large base a grown one."""
    if start is None:
        vocabulary = {"vocab_size": study["tokenizer"]["vocab_size"], "bos_token_id": 0, "eos_token_id": 0}
        config = LlamaConfig(
            **study["models"]["small"], **vocabulary, tie_word_embeddings=True, max_position_embeddings=512
        )
        return LlamaForCausalLM(config)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work / "models" / start)
    if not name.startswith("large-"):
        return model
    return grow_from_pretrained(model, **study["models"]["large"], **study["growth"])


def schedule(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of a step as a share of its peak."""
    return min((step + 1) / warmup, (steps - step) / (steps - warmup))


def draw(tokens: NDArray[np.uint16], order: np.random.Generator, rows: int, length: int) -> Tensor:
    """Return `[rows, length]` random windows."""
    starts = order.integers(0, len(tokens) - length + 1, size=rows)
    return torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))


def prepare_tokens(study: dict[str, Any], corpora: Path, work: Path) -> None:
    """Train the tokenizer and write the tokens of every domain and split, unless they are there."""
    folder = work / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        texts = read(corpora, study["base"], "train", study["tokenizer"]["training_bytes"])
        train_tokenizer(texts, study["tokenizer"]["vocab_size"]).save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for domain in (study["base"], *study["domains"]):
        for split, size in (("train", study["data"]["training_bytes"][domain]), ("validation", None)):
            target = folder / f"{domain}.{split}.npy"
            if not target.exists():
                encoded = tokenizer.encode_batch(list(read(corpora, domain, split, size)))
                ids = [number for each in encoded for number in [0, *each.ids]]
                np.save(target, np.array(ids, dtype=np.uint16))


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    return bpe


def load_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the study."""
    file = str(work / "tokens" / "tokenizer.json")
    return PreTrainedTokenizerFast(tokenizer_file=file, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def read(corpora: Path, domain: str, split: str, size: int | None) -> Iterator[str]:
    """Yield the documents of a corpus until they hold `size` bytes."""
    left = float("inf") if size is None else size
    with gzip.open(corpora / f"{domain}.{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            if left <= 0:
                return
            text = json.loads(line)["text"]
            left -= len(text.encode())
            yield text


if __name__ == "__main__":
    main()
