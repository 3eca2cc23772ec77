"""Grow a stored model, one tensor at a time."""

import os
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from hf_warmscale.checkpoints import (
    ModelWeights,
    ModelWriter,
    TensorSpec,
    copy_side_files,
    open_checkpoint,
    refuse_existing,
    refuse_non_finite,
    skeleton,
    staged_directory,
    write_json,
)
from hf_warmscale.resize.growing.experts import Upcycling
from hf_warmscale.resize.growing.growth import plan_target
from hf_warmscale.resize.growing.receipt import RECEIPT_FILE, GrowthReceipt, finish_receipt, receipt_of, with_entry
from hf_warmscale.resize.growing.verify import probe_tokens, verify_growth
from hf_warmscale.resize.planning.request import Growth, GrowthRequest
from hf_warmscale.resize.planning.target import stored_embedding_factor


def grow_stored(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    request: GrowthRequest,
    *,
    verify: bool,
    target_tokens: int | None,
    max_shard_size: int | str,
) -> GrowthReceipt:
    """Grow a stored model into a new folder; see [`grow_checkpoint`]."""
    refuse_existing(output)
    weights = ModelWeights(open_checkpoint(source))
    config, stored = weights.checkpoint.config, next(iter(weights.specs.values())).dtype
    growth = plan_target(config, request, request.dtype or stored, stored_embedding_factor(config, stored))
    with staged_directory(output) as folder:
        copy_side_files(weights.checkpoint.folder, folder)
        _write_weights(growth, request.dtype, weights, folder, max_shard_size)
        receipt = receipt_of(growth, weights.checkpoint.source.identity, weights.checkpoint.content_hash())
        with_entry(growth.config, receipt).save_pretrained(folder)
        if verify:
            before, after = (
                AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
                for path in (weights.checkpoint.folder, folder)
            )
            tokens = probe_tokens(before, before.config.vocab_size)
            receipt.verification = verify_growth(before, after, growth.source.layer_path, tokens)
        finish_receipt(receipt, target_tokens)
        write_json(folder / RECEIPT_FILE, receipt.to_dict())
    return receipt


def _write_weights(
    growth: Growth | Upcycling,
    dtype: torch.dtype | None,
    weights: ModelWeights,
    folder: Path,
    max_shard_size: int | str,
) -> None:
    parameters = growth.target.parameters
    first = {name: growth.parts(name)[0] for name in parameters}
    specs = {
        name: TensorSpec(parameter.shape(growth.target.sizes), dtype or weights.specs[first[name]].dtype)
        for name, parameter in parameters.items()
    }
    place = {name: index for index, name in enumerate(weights.specs)}
    checked: set[str] = set()

    def read(name: str) -> Tensor:
        tensor = weights.tensor(name)
        if name not in checked:
            refuse_non_finite(name, tensor)
            for stored in weights.sources(name):
                weights.checkpoint.digest(stored)
            checked.add(name)
        return tensor

    with ModelWriter(folder, skeleton(growth.config), specs, max_shard_size=max_shard_size) as writer:
        # In the order of the source: what a block gives to several others is read once.
        for name in tqdm(sorted(first, key=lambda name: place[first[name]]), desc="growing", leave=False):
            writer.write(name, growth.tensor(name, read))
