"""One file of a teacher cache: the predictions for some rows, written at once or not at all."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import default_data_collator

from hf_warmscale.evaluation.cross_entropy import CHUNK_ELEMENTS
from hf_warmscale.keyed_random import keyed_generator
from hf_warmscale.staging import staged_file
from hf_warmscale.training.data.collators import RowCollator
from hf_warmscale.training.data.rows import Row, Rows, fetch
from hf_warmscale.training.data.separation import separation_of
from hf_warmscale.training.distillation.predictions import Logits
from hf_warmscale.training.distillation.row_keys import row_key, row_length
from hf_warmscale.training.distillation.teacher import LiveTeacher, causal_models

ROWS_PER_SHARD = 1_024


def shard_paths(folder: Path, num_rows: int) -> list[Path]:
    """Return the files of a cache of so many rows."""
    count = -(-num_rows // ROWS_PER_SHARD)
    return [folder / f"predictions-{number:05d}-of-{count:05d}.safetensors" for number in range(count)]


def batches_of(rows: Rows, shard: int, size: int) -> Iterator[list[Row]]:
    """Yield the rows of a shard in batches."""
    first, last = shard * ROWS_PER_SHARD, min((shard + 1) * ROWS_PER_SHARD, len(rows))
    for start in range(first, last, size):
        yield fetch(rows, list(range(start, min(start + size, last))))


def write_shard(
    path: Path,
    teacher: LiveTeacher,
    batches: Iterator[list[Row]],
    *,
    k: int,
    draws: int,
    temperature: float,
    dtype: torch.dtype,
) -> None:
    """Write the predictions for some rows.

    Args:
        path (`Path`): the file. The draws depend on its name, so a file that is written again is the same.
        teacher (`LiveTeacher`): whom to ask.
        batches (`Iterator[list[Row]]`): the rows.
        k, draws, temperature, dtype: see `TeacherCache.write`.
    """
    columns: dict[str, list[Tensor]] = {name: [] for name in ("keys", "lengths", "ids", "log_probs", "log_tail")}
    for number, rows in enumerate(batches):
        ids, log_probs, log_tail = _predicted(
            teacher, rows, k - draws, draws, temperature, seed=keyed_generator(f"{path.name} {number}").initial_seed()
        )
        columns["keys"].append(torch.tensor([row_key(row) for row in rows]))
        columns["lengths"].append(torch.tensor([row_length(row) for row in rows]))
        columns["ids"].append(ids.int())
        columns["log_probs"].append(log_probs.to(dtype))
        columns["log_tail"].append(log_tail)
    tensors = {name: torch.cat(parts) for name, parts in columns.items()}
    tensors["ends"] = tensors.pop("lengths").cumsum(0)
    with staged_file(path) as staging:
        save_file(tensors, staging)


def positions_of(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return where the tokens of a batch stand among all its positions: everywhere but at padding."""
    tokens, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None or mask.shape != tokens.shape:
        return torch.arange(tokens.numel(), device=tokens.device)
    return mask.flatten().nonzero()[:, 0]


def _predicted(
    teacher: LiveTeacher, rows: list[Row], likeliest: int, draws: int, temperature: float, *, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, log-probabilities and tails of all positions of some rows, end to end, on the CPU."""
    collate = RowCollator(default_data_collator, separation_of(next(iter(causal_models(teacher.model).values()))))
    batch = collate([{**row, "labels": row.get("labels", row["input_ids"])} for row in rows])
    device = next(teacher.model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    logits = cast(Logits, teacher.predict(inputs)).logits
    # A teacher that is spread over devices may answer on another one than it is asked on.
    logits = logits[positions_of(inputs).to(logits.device), : teacher.num_ids]
    generator = torch.Generator(logits.device).manual_seed(seed)
    size = max(1, CHUNK_ELEMENTS // teacher.num_ids)
    parts = [_chosen(part.float() / temperature, likeliest, draws, generator) for part in logits.split(size)]
    ids, log_probs, log_tail = (torch.cat(each) for each in zip(*parts, strict=True))
    return ids.cpu(), log_probs.cpu(), log_tail.cpu()


def _chosen(logits: Tensor, likeliest: int, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return the likeliest tokens and those drawn, their log-probabilities, and that of all but the likeliest."""
    log_probs = logits.log_softmax(dim=-1)
    top, ids = log_probs.topk(likeliest, dim=-1)
    if not bool(top.isfinite().all()):
        raise ValueError("The teacher gives logits that are not finite; use a checkpoint from before it diverged.")
    tail = log_probs.scatter(1, ids, -torch.inf)
    # Not 1 minus the sum of the likeliest, which would lose all digits of a small tail.
    log_tail = tail.logsumexp(dim=-1)
    if draws:
        ids = torch.cat([ids, _drawn(tail.exp_(), ids[:, :1], draws, generator)], dim=1)
    return ids, log_probs.gather(1, ids), log_tail


def _drawn(tail: Tensor, stand_in: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draw tokens in proportion to the tail; where nothing is left to draw from, a stand-in whose weight is 0."""
    tail.scatter_add_(1, stand_in, (tail.sum(dim=-1, keepdim=True) == 0).to(tail.dtype))
    return torch.multinomial(tail, draws, replacement=True, generator=generator)
