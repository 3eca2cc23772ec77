"""Read the `distillation` of a recipe: which teacher, cached or not, and how much it counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import ConcatDataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from hf_warmscale.checkpoints import load_model, require_model
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.training.data.mixture import ReplayMixture
from hf_warmscale.training.data.rows import Rows
from hf_warmscale.training.distillation.settings import DistillationSettings
from hf_warmscale.training.distillation.teacher_cache import TeacherCache
from hf_warmscale.training.recipe.yaml_file import as_mapping

NUMBERS = ("temperature", "alpha", "self_kd")
KEYS = ("teacher", "dtype", "cache", "top_k", "direction", "sources", *NUMBERS)
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class DistillationPlan:
    """What a recipe says about its teacher, checked.

    Args:
        settings (`DistillationSettings`): the weights of the loss.
        teacher (`str`, *optional*): checkpoint or Hub id.
        dtype (`str`): of the teacher.
        cache (`str`, *optional*): folder of its predictions.
        top_k (`int`): tokens for each position in the cache.
    """

    settings: DistillationSettings
    teacher: str | None
    dtype: str
    cache: str | None
    top_k: int

    def load(
        self, mixture: ReplayMixture, tokenizer: PreTrainedTokenizerBase | None, training: TrainingArguments
    ) -> dict[str, Any]:
        """Return the arguments of `DistillationTrainer`; the cache is written if it is not there.

        Args:
            mixture (`ReplayMixture`): of the stage.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): of the student.
            training (`TrainingArguments`): where to run the teacher; of several processes, one writes.
        """
        named = {"sources": self.settings.sources, "direction": self.settings.direction}
        numbers = {name: getattr(self.settings, name) for name in NUMBERS}
        if self.cache is None:
            return {**named, **numbers, "teacher": self._model()}
        if self.teacher is not None:
            self._write(mixture, tokenizer, training.device)
        return {**named, **numbers, "teacher": TeacherCache(self.cache)}

    def _model(self) -> nn.Module:
        assert self.teacher is not None
        dtype = None if self.dtype == "auto" else getattr(torch, self.dtype)
        return cast(nn.Module, load_model(self.teacher, dtype=dtype))

    def _write(self, mixture: ReplayMixture, tokenizer: PreTrainedTokenizerBase | None, device: torch.device) -> None:
        assert self.cache is not None
        heard = self.settings.sources or mixture.names
        rows = cast(Rows, ConcatDataset([cast(Any, mixture.sources[name]) for name in heard]))
        teacher, temperature = self._model().to(device), self.settings.temperature
        TeacherCache.write(self.cache, teacher, rows, k=self.top_k, temperature=temperature, tokenizer=tokenizer)


def plan_distillation(value: Mapping[str, Any] | str, mixture: ReplayMixture) -> DistillationPlan:
    """Check the `distillation` of a recipe, before anything is loaded.

    Args:
        value (`Mapping` or `str`): of the file, or JSON of the command line.
        mixture (`ReplayMixture`): of the stage.

    Raises:
        ValueError: naming the value that cannot be used.
        FileNotFoundError: if the teacher is not there.
    """
    given = as_mapping("distillation", value)
    for key in given:
        refuse_unknown("key in distillation", key, KEYS)
    for name in NUMBERS:
        if name in given and (isinstance(given[name], bool) or not isinstance(given[name], int | float)):
            raise ValueError(f"distillation.{name} is {given[name]!r}; it must be a number.")
    sources = given.get("sources")
    if sources is not None and not (isinstance(sources, list) and all(isinstance(name, str) for name in sources)):
        raise ValueError(f"distillation.sources is {sources!r}; it must be a list of sources of the mixture.")
    chosen = {name: given[name] for name in (*NUMBERS, "direction") if name in given}
    settings = DistillationSettings(**chosen, sources=None if sources is None else tuple(sources))
    settings.numbers(mixture.names)
    return DistillationPlan(settings, **_teacher(given))


def _teacher(given: Mapping[str, Any]) -> dict[str, Any]:
    teacher, cache, top_k, dtype = (given.get(name) for name in ("teacher", "cache", "top_k", "dtype"))
    for name, value in (("teacher", teacher), ("cache", cache)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"distillation.{name} is {value!r}; it must be a name.")
    if teacher is None and cache is None:
        raise ValueError("distillation names no teacher; add teacher: a checkpoint, or cache: a folder.")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"distillation.top_k is {top_k!r}; it must be a positive number of tokens.")
    if top_k is not None and cache is None:
        raise ValueError("distillation.top_k is of a cache; name its folder with cache, or leave top_k out.")
    refuse_unknown("distillation.dtype", str(dtype or "auto"), DTYPES)
    if teacher is not None:
        require_model(teacher)
    elif not Path(cast(str, cache)).is_dir():
        raise FileNotFoundError(f"There is no teacher cache {cache}; name a teacher too, and it is written.")
    return {"teacher": teacher, "cache": cache, "top_k": top_k or 64, "dtype": str(dtype or "auto")}
