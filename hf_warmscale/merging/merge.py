"""Merge stored checkpoints into a new model folder, one tensor at a time."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor
from tqdm import tqdm

from hf_warmscale.checkpoints import (
    ModelWeights,
    ModelWriter,
    Receipt,
    check_format_version,
    copy_side_files,
    refuse_existing,
    refuse_non_finite,
    staged_directory,
    write_json,
)
from hf_warmscale.checkpoints.receipts import Relation
from hf_warmscale.checkpoints.tensors import tensor_digest
from hf_warmscale.merging.inputs import MergeInput, describe_input, named_sources, open_inputs
from hf_warmscale.merging.methods import Rescale, dare, linear, model_stock, slerp, task_arithmetic, ties
from hf_warmscale.merging.weights import uniform_weights
from hf_warmscale.options import MERGE_METHODS, MergeMethod

WITH_BASE: frozenset[MergeMethod] = frozenset({"task_arithmetic", "ties", "dare", "model_stock"})
WITH_DENSITY: frozenset[MergeMethod] = frozenset({"ties", "dare"})
RESULT = "merge_result.json"
TITLE = "Merge"
TAG = "merge"
RESULT_VERSION = 1
"""Of `merge_result.json`. Version 0.1.0 of this package wrote the same fields without the version."""

Merge = Callable[[str, Sequence[Tensor]], Tensor]
"""A tensor's name and its values in the checkpoints, to the merged value."""


@dataclass(frozen=True)
class MergeReceipt(Receipt):
    """The record of a merge; stored as `merge_result.json` in the merged folder.

    Args:
        method (`str`): the merge method.
        weights (`tuple[float, ...]`): one per checkpoint, in their order; empty for model stock, which finds its own.
        inputs (`tuple[MergeInput, ...]`): the checkpoints.
        base (`MergeInput` or `None`): the model from which differences are taken.
        density (`float` or `None`): the share of each difference that is kept (TIES, DARE).
        rescale (`str` or `None`): how DARE scales the entries that it keeps.
        seed (`int` or `None`): of DARE's masks.

    Example:

    ```python
    >>> receipt = merge_checkpoints(["run/checkpoint-900", "run/checkpoint-1000"], "merged", weights=[0.25, 0.75])
    >>> receipt.method, receipt.weights
    ('linear', (0.25, 0.75))
    ```
    """

    file_name: ClassVar[str] = RESULT
    title: ClassVar[str] = TITLE
    tag: ClassVar[str] = TAG
    format_version: ClassVar[int] = RESULT_VERSION

    method: MergeMethod
    weights: tuple[float, ...]
    inputs: tuple[MergeInput, ...]
    base: MergeInput | None = None
    density: float | None = None
    rescale: Rescale | None = None
    seed: int | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_dict` of this version or of 0.1.0 wrote.

        Raises:
            ValueError: if a newer version wrote it, or a field is missing.
        """
        check_format_version(content, cls.format_version, RESULT)
        try:
            inputs = tuple(map(MergeInput.from_dict, content["inputs"]))
            base = MergeInput.from_dict(content["base"]) if content["base"] else None
            rest = {name: content[name] for name in ("method", "density", "rescale", "seed")}
            return cls(weights=tuple(content["weights"]), inputs=inputs, base=base, **rest)
        except (KeyError, TypeError) as error:
            raise ValueError(f"The {RESULT} is damaged ({error}); merge again.") from error

    def summary(self) -> str:
        """Return one sentence for the card."""
        weights = f" with the weights {', '.join(f'{weight:.4g}' for weight in self.weights)}" if self.weights else ""
        return f"Merged from {named_sources(self.inputs, self.base)} by `{self.method}`{weights}."

    def sources(self) -> tuple[str, ...]:
        """Return the names of the merged checkpoints and of the base."""
        return tuple(each.source for each in (*self.inputs, *([self.base] if self.base else [])))

    def relation(self) -> Relation:
        """Return that it is a merge."""
        return "merge"


def merge_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    method: MergeMethod = "linear",
    weights: Sequence[float] | None = None,
    base: str | os.PathLike[str] | None = None,
    density: float = 0.5,
    rescale: Rescale = "density",
    seed: int = 0,
    max_shard_size: int | str = "5GB",
) -> MergeReceipt:
    """Merge checkpoints into a stock model folder, with the tokenizer and the generation config of the last one.

    Tensors are read, merged in float64 and written one after another, so memory holds one tensor of each checkpoint.
    They are matched by the names of the live model: files that spell one model differently (a tied head stored or
    not, packed or separate experts) can be merged. The order of the checkpoints decides which one gives config and
    tokenizer, and changes nothing else beyond the last bit.

    Args:
        checkpoints (`Sequence[str | PathLike]`): folders or Hub ids of one architecture, vocabulary and dtype.
        output (`str` or `PathLike`): a new or empty folder.
        method (`str`): `"linear"`, `"slerp"` (two checkpoints), `"task_arithmetic"`, `"ties"`, `"dare"` or
            `"model_stock"`; see `merging.methods` for the formulas.
        weights (`Sequence[float]`, *optional*): one per checkpoint; by default uniform, or 1 each for the methods that
            add differences to a base. `hf_warmscale.merging` has the WSM (`power_weights`) and LAWA weights.
        base (`str` or `PathLike`, *optional*): the model from which differences are taken; task arithmetic, TIES, DARE
            and model stock need it.
        density (`float`): the share of each difference that TIES and DARE keep, in (0, 1].
        rescale (`str`): how DARE scales the entries that it keeps: `"density"` (`1 / (1 - p)`) or `"l1"`.
        seed (`int`): of DARE's masks.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.

    Returns:
        `MergeReceipt`: the record that is also written to the folder.

    Raises:
        ValueError: if the checkpoints do not belong together, are quantized, hold NaN, or the settings do not fit the
            method.
        FileNotFoundError: if a checkpoint does not exist.
        OSError: if the disk is full; nothing is left at `output`.

    Example:

    ```python
    >>> steps = [f"run/checkpoint-{step}" for step in (800, 900, 1000)]
    >>> merge_checkpoints(steps, "merged", weights=power_weights(3, 1.0))
    ```
    """
    # The cheapest refusals first: the output, the settings, and only then the checkpoints.
    refuse_existing(output)
    _check_method(method, len(checkpoints), base, density)
    weights = _check_weights(method, len(checkpoints), weights)
    opened, origin = open_inputs(checkpoints, base=base)
    merge = _merger(method, weights, opened, origin, density, rescale, seed)
    with staged_directory(output) as folder:
        write_merged(opened, folder, merge, max_shard_size=max_shard_size)
        receipt = MergeReceipt(
            method=method,
            weights=() if method == "model_stock" else tuple(weights),
            # After the merge: `_read` has hashed every tensor on the way, so the files are not read twice.
            inputs=tuple(describe_input(each.checkpoint) for each in opened),
            base=describe_input(origin.checkpoint) if origin else None,
            density=density if method in WITH_DENSITY else None,
            rescale=rescale if method == "dare" else None,
            seed=seed if method == "dare" else None,
        )
        write_json(folder / RESULT, receipt.to_dict())
    return receipt


def write_merged(
    checkpoints: Sequence[ModelWeights], folder: Path, merge: Merge, *, max_shard_size: int | str = "5GB"
) -> None:
    """Apply `merge` to every tensor and write the result as a model; integer tensors are those of the last.

    Args:
        checkpoints (`Sequence[ModelWeights]`): of one architecture; the last one gives config and tokenizer.
        folder (`Path`): inside a `staged_directory`.
        merge (`Merge`): a function of a tensor's name in the live model and of its values in the checkpoints.
        max_shard_size (`int` or `str`): bytes, or a string such as `"5GB"`.

    Raises:
        ValueError: if a checkpoint holds NaN.
    """
    last = checkpoints[-1]
    _write_side_files(last, folder)
    with (
        ModelWriter(folder, last.model, last.specs, max_shard_size=max_shard_size) as writer,
        tqdm(last.specs, desc="merging", unit="tensor") as names,  # closed before an error is reported
    ):
        for name in names:
            tensors = [_read(weights, name) for weights in checkpoints]
            writer.write(name, merge(name, tensors) if tensors[0].is_floating_point() else tensors[-1])


def _read(weights: ModelWeights, name: str) -> Tensor:
    """Read a tensor; check it, and hash the stored tensors it is made of, while they are in memory."""
    tensor = weights.tensor(name)
    refuse_non_finite(f"{name} of {weights.checkpoint.source.name}", tensor)
    for stored in weights.sources(name):
        weights.checkpoint.digest(stored)
    return tensor


def _merger(
    method: MergeMethod,
    weights: Sequence[float],
    checkpoints: Sequence[ModelWeights],
    base: ModelWeights | None,
    density: float,
    rescale: Rescale,
    seed: int,
) -> Merge:
    def onto(name: str, tensors: Sequence[Tensor]) -> Tensor:
        assert base is not None
        # One tensor of the base at a time, and only for the methods that need it.
        start = _read(base, name)
        if method == "task_arithmetic":
            return task_arithmetic(start, tensors, weights)
        if method == "ties":
            return ties(start, tensors, weights, density=density)
        if method == "dare":
            # Masks depend on the content of a checkpoint, not on its place in the list or on how its file spells it.
            keys = [f"{seed} {name} {tensor_digest(tensor)}" for tensor in tensors]
            return dare(start, tensors, weights, density=density, keys=keys, rescale=rescale)
        return model_stock(start, tensors)

    if method == "linear":
        return lambda name, tensors: linear(tensors, weights)
    if method == "slerp":
        return lambda name, tensors: slerp(tensors[0], tensors[1], weights[1])
    return onto


def _write_side_files(last: ModelWeights, folder: Path) -> None:
    copy_side_files(last.checkpoint.folder, folder)
    config = deepcopy(last.checkpoint.config)
    config.get_text_config().use_cache = True  # a checkpoint of a training run has it switched off
    # llama.cpp and vLLM choose the model class by this field, which some tools leave out.
    config.architectures = config.architectures or [type(last.model).__name__]
    if hasattr(config, "auto_map"):
        del config.auto_map  # it names code that is not copied
    config.save_pretrained(folder)


def _check_method(method: str, count: int, base: str | os.PathLike[str] | None, density: float) -> None:
    if method not in MERGE_METHODS:
        raise ValueError(f"The method {method!r} is unknown; choose one of {', '.join(MERGE_METHODS)}.")
    if method == "slerp" and count != 2:
        raise ValueError(f"slerp merges two checkpoints, not {count}; merge more with method='linear'.")
    if method in WITH_BASE and base is None:
        raise ValueError(f"The method {method} adds differences to a base model; pass base=...")
    if method not in WITH_BASE and base is not None:
        raise ValueError(f"The method {method} does not use a base; leave base={os.fspath(base)!r} out.")
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it must lie in (0, 1].")


def _check_weights(method: MergeMethod, count: int, weights: Sequence[float] | None) -> Sequence[float]:
    if weights is None:
        return (1.0,) * count if method in WITH_BASE else uniform_weights(count)
    if len(weights) != count:
        raise ValueError(f"There are {len(weights)} weights for {count} checkpoints; give one each.")
    if method == "model_stock":
        raise ValueError("model_stock finds its own weights; leave weights out.")
    for weight in weights:
        if not isfinite(weight):
            raise ValueError(f"One of the weights is {weight}; give finite numbers.")
    if method not in WITH_BASE and abs(sum(weights) - 1.0) > 1e-6:
        raise ValueError(f"The weights {list(weights)} sum to {sum(weights):g}; a {method} merge needs a sum of 1.")
    return weights
