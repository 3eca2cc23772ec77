"""Predictions of a teacher on disk: the likeliest tokens of every position, written once and read by many runs."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_warmscale.checkpoints import check_format_version, find_tokenizer, write_json
from hf_warmscale.staging import locked, read_json, staged_directory
from hf_warmscale.studies.study import differences
from hf_warmscale.training.data.rows import Row, Rows, identity
from hf_warmscale.training.distillation.cache_shards import (
    batches_of,
    positions_of,
    shard_paths,
    write_shard,
)
from hf_warmscale.training.distillation.predictions import TopLogProbs
from hf_warmscale.training.distillation.row_keys import ABSENT, keys_of_batch, row_key
from hf_warmscale.training.distillation.teacher import (
    LiveTeacher,
    causal_models,
    known_ids,
    settle_dtype,
    weights_hash,
)
from hf_warmscale.training.launch import is_partitioned

FORMAT_VERSION = 1
MANIFEST = "teacher_cache.json"
TOKENIZER = "tokenizer"


class TeacherCache:
    """The likeliest next tokens of a teacher at every position of a data set, and some drawn from the others.

    A run that reads a cache does without the teacher: its memory, and its forward pass. With k below the vocabulary
    a forward divergence and its gradient are right in the mean over the draws, as in random sampling knowledge
    distillation (arXiv:2503.16870), with the likeliest tokens kept for certain. A reverse divergence sees the others
    as one event, and is smaller than the live teacher's: for it, prefer a live teacher, or `draws=0` and a large k.
    Rows are found by their tokens, so any mixture, order or selection of them can be trained on.

    Args:
        folder (`str` or `PathLike`): what `write` wrote.
        teacher (`nn.Module`, *optional*): refuse a cache of another teacher.

    Raises:
        FileNotFoundError: if there is no cache.
        ValueError: if it is incomplete, damaged, or of another teacher.

    Example:

    ```python
    >>> cache = TeacherCache.write("cache", large, german, k=64)
    >>> DistillationTrainer(small, args, teacher=cache, sources=["german"], stage=stage).train()
    ```
    """

    def __init__(self, folder: str | os.PathLike[str], teacher: nn.Module | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        paths = shard_paths(self.folder, self.manifest["num_rows"])
        for path in paths:
            if not path.is_file():
                raise ValueError(f"The teacher cache {folder} is incomplete; call TeacherCache.write again to go on.")
        if teacher is not None:
            settle_dtype(teacher)
            if weights_hash(teacher) != self.manifest["teacher"]:
                raise ValueError(f"The teacher cache {folder} is of another teacher; write a new one.")
        self._files = [_open(path) for path in paths]
        keys = [file.get_tensor("keys").numpy() for file in self._files]
        self._ends = [file.get_tensor("ends").numpy() for file in self._files]
        self._shard_of = np.repeat(np.arange(len(keys)), [len(each) for each in keys])
        self._row_of = np.concatenate([np.arange(len(each)) for each in keys])
        every = np.concatenate(keys)
        self._order = np.argsort(every, kind="stable")
        self._sorted = every[self._order]

    @classmethod
    def write(
        cls,
        folder: str | os.PathLike[str],
        teacher: nn.Module,
        rows: Rows,
        *,
        k: int = 64,
        draws: int | None = None,
        temperature: float = 1.0,
        batch_size: int = 8,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Write the predictions of a teacher, or what is missing of them, and return the cache.

        A write that was killed goes on where it was when it is called again. Of several processes that call it at
        once, as under `accelerate launch`, one writes and the others wait and then read. If that one fails, the next
        one goes on, so an error reaches them all.

        Args:
            folder (`str` or `PathLike`): for this cache alone.
            teacher (`nn.Module`): a causal language model, see [`DistillationTrainer`]; on the device where it runs.
            rows (`Rows`): the data set, packed or not: `input_ids`, and `position_ids` where rows hold documents.
            k (`int`): tokens for each position; with the vocabulary or more, all.
            draws (`int`, *optional*): how many of the k are drawn from all but the likeliest, by their probabilities;
                by default a quarter.
            temperature (`float`): of the softmax; a run must use the same.
            batch_size (`int`): rows in a forward pass.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): rows of the vocabulary beyond it are left out; by
                default that of the teacher's folder.
            dtype (`torch.dtype`): of the log-probabilities; float16 halves them, with an error of up to 0.004 nats.

        Raises:
            ValueError: if the folder holds another cache (each difference is named), a value is out of range, the
                teacher gives logits that are not finite, or ZeRO-3 has partitioned it and the cache is not complete.
        """
        models = causal_models(teacher)
        if not models:
            raise ValueError(f"The teacher is a {type(teacher).__name__}; pass a causal language model.")
        settle_dtype(teacher)
        num_ids = known_ids(models, tokenizer)
        if k < 1 or not 0 < temperature < float("inf"):
            raise ValueError(f"k is {k} and temperature {temperature}; both must be positive.")
        k = min(k, num_ids)
        draws = 0 if k == num_ids else k // 4 if draws is None else draws
        if not 0 <= draws < k:
            raise ValueError(f"draws is {draws}; it must be between 0 and k - 1, {k - 1}.")
        wanted: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "teacher": weights_hash(teacher),
            "data": identity(rows),
            "k": k,
            "draws": draws,
            "temperature": float(temperature),
            "num_ids": num_ids,
            "dtype": str(dtype).removeprefix("torch."),
            "num_rows": len(rows),
        }
        folder = Path(folder)
        if _is_complete(folder, wanted):  # also where it cannot be written to
            return cls(folder)
        if is_partitioned(teacher):
            raise ValueError(
                "ZeRO-3 has partitioned the teacher, and no process can run it alone; write the cache without "
                "DeepSpeed first, which then reads it."
            )
        live = LiveTeacher(teacher, num_ids, next(teacher.parameters()).device)
        spoken = tokenizer or find_tokenizer(next(iter(models.values())).config.name_or_path)
        # No barrier: the wait may be longer than a process group allows, and would not end if the writer failed.
        with locked(folder, wait=-1):
            _claim(folder, wanted)
            if spoken is not None and not (folder / TOKENIZER).is_dir():
                with staged_directory(folder / TOKENIZER) as staging:
                    spoken.save_pretrained(staging)
            for number, path in enumerate(shard_paths(folder, len(rows))):
                if not path.is_file():
                    batches = batches_of(rows, number, batch_size)
                    write_shard(path, live, batches, k=k, draws=draws, temperature=temperature, dtype=dtype)
        return cls(folder)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of the teacher, or `None` if it had none."""
        return find_tokenizer(self.folder / TOKENIZER) if (self.folder / TOKENIZER).is_dir() else None

    def predict(self, inputs: Mapping[str, Tensor], keys: Tensor | None = None) -> TopLogProbs:
        """See `Teacher.predict`; without keys they are made from the inputs."""
        tokens = inputs["input_ids"]
        asked = (keys_of_batch(inputs) if keys is None else keys).cpu().numpy()
        heard = asked[:, 0] != ABSENT
        places = iter(self._find(asked[heard, 0]).tolist())
        parts = [
            self._row(next(places)) if hears else self._nothing(length)
            for hears, length in zip(heard, asked[:, 1].tolist(), strict=True)
        ]
        ids, log_probs, log_tail = (torch.cat(each).to(tokens.device) for each in zip(*parts, strict=True))
        positions = positions_of(inputs)
        if len(ids) != positions.numel():
            raise ValueError(
                f"The rows of the teacher cache {self.folder} have other lengths than those of the batch."
            )
        columns = [_spread(each, positions, tokens.numel()) for each in (ids.long(), log_probs, log_tail)]
        return TopLogProbs(columns[0], columns[1], columns[2], self.manifest["num_ids"], self.manifest["draws"])

    def fingerprint(self) -> str:
        """See `Teacher.fingerprint`; fewer tokens than all predict otherwise than the live teacher does."""
        k, draws, weights = self.manifest["k"], self.manifest["draws"], str(self.manifest["teacher"])
        return weights if k == self.manifest["num_ids"] else f"{weights} top {k - draws} and {draws} drawn"

    def require(self, rows: Sequence[Row], source: str) -> None:
        """Refuse rows that are not in the cache.

        Raises:
            ValueError: naming their source.
        """
        self._find(np.asarray([row_key(row) for row in rows]), f"the source {source!r}")

    def _find(self, keys: NDArray[np.int64], where: str = "the batch") -> NDArray[np.int64]:
        places = np.searchsorted(self._sorted, keys).clip(max=len(self._sorted) - 1)
        missing = int((self._sorted[places] != keys).sum())
        if missing:
            raise ValueError(
                f"The teacher cache {self.folder} was written from other data: it lacks {missing} of {len(keys)} rows "
                f"of {where}; write one from the rows that are trained on."
            )
        found: NDArray[np.int64] = self._order[places]
        return found

    def _nothing(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return any predictions for a row that no loss looks at."""
        k = self.manifest["k"]
        return torch.arange(k).expand(length, -1), torch.zeros(length, k), torch.zeros(length)

    def _row(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        shard, row = int(self._shard_of[place]), int(self._row_of[place])
        ends, file = self._ends[shard], self._files[shard]
        start, stop = int(ends[row - 1]) if row else 0, int(ends[row])
        return tuple(file.get_slice(name)[start:stop] for name in ("ids", "log_probs", "log_tail"))


def _spread(values: Tensor, positions: Tensor, count: int) -> Tensor:
    """Return values at their positions; padding repeats the first value, and has no target."""
    if len(values) == count:
        return values
    spread = values[:1].expand(count, *values.shape[1:]).clone()
    return spread.index_copy_(0, positions, values)


def _is_complete(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds all of the cache that is wanted; another cache is refused."""
    if not (folder / MANIFEST).is_file():
        return False
    _refuse_another(folder, wanted)
    return all(path.is_file() for path in shard_paths(folder, wanted["num_rows"]))


def _claim(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Begin a cache in a folder, or see that the one there is the same."""
    if (folder / MANIFEST).is_file():
        _refuse_another(folder, wanted)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"The folder {folder} is not empty and holds no teacher cache; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MANIFEST, wanted)


def _refuse_another(folder: Path, wanted: Mapping[str, Any]) -> None:
    found = list(differences(_read_manifest(folder), json.loads(json.dumps(wanted))))
    if found:
        raise ValueError(f"The folder {folder} holds another teacher cache: {', '.join(found)}; name a new folder.")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"There is no teacher cache {folder}; write one with TeacherCache.write.")
    content = read_json(path, "write the teacher cache anew")
    check_format_version(content, FORMAT_VERSION, f"file {path}")
    return content


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # the Rust library's own class, which it does not export
        raise ValueError(f"{path} is damaged ({error}); delete it and call TeacherCache.write again.") from error
