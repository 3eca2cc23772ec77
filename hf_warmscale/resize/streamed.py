"""Grow a stored model, one tensor at a time."""

import os
from collections.abc import Mapping
from pathlib import Path

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
from hf_warmscale.resize.engine import Transfer, transfer_tensor
from hf_warmscale.resize.receipt import RECEIPT_FILE, GrowthReceipt, finish_receipt, make_receipt, with_entry
from hf_warmscale.resize.request import Growth, GrowthRequest, plan_growth
from hf_warmscale.resize.verify import probe_tokens, verify_growth


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
    growth = plan_growth(weights.checkpoint.config, request, request.dtype or next(iter(weights.specs.values())).dtype)
    transfers = growth.transfers()
    with staged_directory(output) as folder:
        copy_side_files(weights.checkpoint.folder, folder)
        _write_weights(growth, transfers, weights, folder, max_shard_size)
        receipt = make_receipt(growth, transfers, os.fspath(source), weights.checkpoint.content_hash())
        with_entry(growth.config, receipt).save_pretrained(folder)
        if verify:
            before, after = (
                AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
                for path in (weights.checkpoint.folder, folder)
            )
            layers = growth.plan.source.layer_path
            receipt.verification = verify_growth(before, after, layers, probe_tokens(before))
        finish_receipt(receipt, target_tokens)
        write_json(folder / RECEIPT_FILE, receipt.to_dict())
    return receipt


def _write_weights(
    growth: Growth,
    transfers: Mapping[str, Transfer],
    weights: ModelWeights,
    folder: Path,
    max_shard_size: int | str,
) -> None:
    dtypes = {name: growth.request.dtype or weights.specs[each.source].dtype for name, each in transfers.items()}
    specs = {name: TensorSpec(transfer.shape, dtypes[name]) for name, transfer in transfers.items()}
    place = {name: index for index, name in enumerate(weights.specs)}
    checked: set[str] = set()
    with ModelWriter(folder, skeleton(growth.config), specs, max_shard_size=max_shard_size) as writer:
        # In the order of the source: what a block gives to several others is read once.
        for name in tqdm(
            sorted(transfers, key=lambda name: place[transfers[name].source]), desc="growing", leave=False
        ):
            source = weights.tensor(transfers[name].source)
            if transfers[name].source not in checked:
                refuse_non_finite(transfers[name].source, source)
                checked.add(transfers[name].source)
                for stored in weights.sources(transfers[name].source):
                    weights.checkpoint.digest(stored)
            writer.write(name, transfer_tensor(transfers[name], source, key=growth.key(name), dtype=dtypes[name]))
