"""The finalists of a search: the best candidates are healed briefly, because ranks change while models heal."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_warmscale.compression.budget.candidates import ScoredShape
from hf_warmscale.evaluation import EvaluationSet, NonFiniteLossError
from hf_warmscale.resize.shrink import shrink_measured
from hf_warmscale.resize.shrinking.cut import Measured

logger = logging.getLogger(__name__)

Heal = Callable[[PreTrainedModel, PreTrainedModel], None]
"""Train a student, in place, towards a teacher."""


def heal_finalists(
    measured: Measured,
    candidates: Sequence[ScoredShape],
    count: int,
    heal: Heal,
    select: EvaluationSet,
    dtype: torch.dtype | None,
) -> list[ScoredShape]:
    """Heal the candidates with the lowest losses briefly and score them again.

    Args:
        measured (`Measured`): the source with its importance.
        candidates (`Sequence[ScoredShape]`): all of the search.
        count (`int`): finalists.
        heal (`Callable`): trains a student towards the source.
        select (`EvaluationSet`): the documents on which candidates are scored.
        dtype (`torch.dtype` or `None`): of the students.

    Returns:
        `list[ScoredShape]`: all candidates in their order; the finalists have `healed`, except those that diverged.
    """
    scored, source = list(candidates), measured.source.model
    device = source.device
    finalists = sorted(range(len(scored)), key=lambda place: scored[place].scores.mean)[:count]
    for place in tqdm(finalists, desc="healing finalists", unit="candidate", leave=False):
        student = shrink_measured(measured, scored[place].sizes, dtype=dtype, verify=False)
        heal(student, source)
        torch.nn.Module.to(source, device)  # the next cut reads it where the importance was measured
        try:
            scored[place] = replace(scored[place], healed=select.nll(student.eval()))
        except NonFiniteLossError:  # the other finalists may still heal
            logger.warning("The finalist with sizes %s diverged; it is left out.", scored[place].sizes)
    return scored


def best(candidates: Sequence[ScoredShape]) -> ScoredShape:
    """Return the finalist that healed best, or without finalists the candidate that lost least when it was cut."""
    finalists = [each for each in candidates if each.healed is not None]
    return min(finalists or candidates, key=lambda each: (each.healed or each.scores).mean)
