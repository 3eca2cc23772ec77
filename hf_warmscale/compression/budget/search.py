"""Shrink a model to a budget: the sizes are searched, on the loss right after the cut or after a brief healing."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from optuna.study import StudyDirection
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.architecture import Axis, ModelMap, describe, on_cpu
from hf_warmscale.checkpoints import find_tokenizer
from hf_warmscale.compression.budget.budget import Ledger, SizeBudget, one_budget
from hf_warmscale.compression.budget.candidates import Journal, ScoredShape, front, journal_path, record
from hf_warmscale.compression.budget.finalists import Heal, best, heal_finalists
from hf_warmscale.compression.budget.healing import BriefHealing
from hf_warmscale.compression.budget.receipt import BudgetSearchReceipt
from hf_warmscale.compression.budget.shapes import Shapes, Sizes
from hf_warmscale.evaluation import DocumentNLL, EvaluationSet, NonFiniteLossError, paired_bootstrap
from hf_warmscale.evaluation.evaluation_set import DEFAULT_BATCH_TOKENS, default_max_length
from hf_warmscale.merging.objectives.splits import split_documents
from hf_warmscale.merging.search.proposals import propose
from hf_warmscale.resize.growing.in_memory import make_model, restore_dtypes
from hf_warmscale.resize.model_source import ModelSource, find_model
from hf_warmscale.resize.planning.layer_map import LayerMap
from hf_warmscale.resize.planning.target import target_config
from hf_warmscale.resize.shrink import shrink_measured
from hf_warmscale.resize.shrinking.calibration import Calibration
from hf_warmscale.resize.shrinking.cut import Measured, cut, measure
from hf_warmscale.resize.shrinking.selection import select_blocks

logger = logging.getLogger(__name__)

RANDOM_TRIES = 1000
LEAST_SPENT = 0.95
"""Of the budget: with less, a candidate is tried only if there is no other."""


def shrink_to_budget(
    source: str | os.PathLike[str] | PreTrainedModel,
    *,
    parameters: float | None = None,
    active_parameters: float | None = None,
    memory_bytes: float | None = None,
    calibration: Calibration,
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    n_trials: int = 30,
    seed: int = 0,
    heal: Heal | None = None,
    heal_briefly: Heal | None = None,
    finalists: int = 4,
    storage: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    verify: bool = True,
) -> PreTrainedModel:
    """Shrink a causal language model until it fits a budget, to the sizes that lose least.

    Importance is measured once. A candidate is a number of blocks, a hidden size and a number of heads; its MLP is the
    largest that fits. It is cut in memory as [`shrink_from_pretrained`] does and scored on one half of the documents;
    Optuna's Gaussian process proposes the next one. The first candidates are the plain cuts (fewer blocks only, a
    smaller hidden size only, a smaller MLP only, hidden size and MLP together). The other half of the documents then
    judges the best candidate, the plain cuts and the Pareto front. No candidate is written or loaded.

    The candidate that loses least when it is cut need not be the one that heals best. With `heal_briefly`, the best
    candidates are trained for a while and scored again, and the winner is the best of these finalists (lightweight
    retraining, arXiv:2407.14679, section 3.2).

    Args:
        source (`str`, `PathLike` or `PreTrainedModel`): a folder, a Hub id (`id@revision` too) or a live model, which
            is not changed.
        parameters (`float`, *optional*): the most scalars, tied ones once.
        active_parameters (`float`, *optional*): the most scalars that a token uses.
        memory_bytes (`float`, *optional*): the most bytes of weights. Give exactly one of the three.
        calibration (`Sequence[str]` or `Tensor`): texts, or token ids `[batch, tokens]`, to measure importance on.
        documents (`Sequence[str]`): held-out texts, at least four different ones.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the source; by default the one in its folder.
        n_trials (`int`): candidates, the plain cuts included.
        seed (`int`): of the proposals.
        heal (`Callable`, *optional*): called with the best candidate and the source; trains the first in place, for
            example with [`HealingTrainer`], or as a recipe says: [`RecipeHealing`].
        heal_briefly (`Callable`, *optional*): as `heal`, for each finalist; [`RecipeHealing.briefly`] is one, whose
            runs are removed in the end.
        finalists (`int`): how many candidates are healed briefly, the best as they were cut.
        storage (`str` or `PathLike`, *optional*): a JSON file of the finished candidates; a search that was killed
            continues from it.
        dtype (`torch.dtype`, *optional*): of all weights of the result; by default each keeps its own.
        max_length (`int`, *optional*): predictions in a window; by default 1024, or what the model takes if less.
        batch_tokens (`int`): the most positions in a batch.
        verify (`bool`): measure the change of the logits for the receipt.

    Returns:
        `PreTrainedModel`: in evaluation mode, with its receipt in `shrink_receipt` and the search in `budget_search`:
        all candidates, the front, and the paired intervals of the judging half.

    Raises:
        ValueError: if there is not exactly one budget, it is below the embedding or the smallest shape, or not below
            the source; if there is no calibration, or too few documents; if the source is quantized.
        FileNotFoundError: if the source does not exist.

    Example:

    ```python
    >>> small = shrink_to_budget("HuggingFaceTB/SmolLM2-135M", parameters=100e6, calibration=texts, documents=held_out)
    >>> small.budget_search["winner"]["sizes"]
    ```
    """
    budget = one_budget(parameters, active_parameters, memory_bytes)
    _check_settings(n_trials, finalists, calibration)
    halves = split_documents(documents, "documents")
    with on_cpu():
        model = find_model(source)
        described = describe(model.config)
        ledger = Ledger(described, model.specs, dtype)
        _refuse_outside(budget, ledger)
        tokenizer = tokenizer or _own_tokenizer(model)
        length = max_length or default_max_length(model.model)
        # The candidates are compared on one half; the other judges those that were chosen.
        select, report = (
            EvaluationSet.from_documents(texts, tokenizer, max_length=length, batch_tokens=batch_tokens)
            for texts in halves
        )
        measured = measure(model, described, calibration)
        search = BudgetSearch(measured, _shapes(measured, ledger, budget), select, dtype, seed)
        settings = {**_dependencies(model, budget, measured), "documents": select.sha256, "length": length}
        settings |= {"seed": seed, "dtype": str(dtype)}
        candidates = search.run(n_trials, Journal(journal_path(storage), settings, select))
        if not candidates:
            raise ValueError(
                f"No shape within {budget} is one that a {described.model_type} config accepts; raise the budget, or "
                "give sizes."
            )
    if heal_briefly is not None:
        candidates = heal_finalists(measured, candidates, finalists, heal_briefly, select, dtype)
    winner = best(candidates)
    with on_cpu():
        judged = search.judge(candidates, winner, report)
        small = shrink_measured(measured, winner.sizes, dtype=dtype, verify=verify)
    receipt = BudgetSearchReceipt(budget={"kind": budget.kind, "amount": budget.amount}, **judged)
    if heal is not None:
        receipt.healed = _heal_winner(heal, small, model.model, report, seed)
    setattr(small, BudgetSearchReceipt.attribute, receipt.to_dict())
    if isinstance(heal_briefly, BriefHealing):  # not earlier: a search that is killed continues from these runs
        heal_briefly.remove_runs()
    return small


def _check_settings(n_trials: int, finalists: int, calibration: Calibration) -> None:
    if n_trials < 1:
        raise ValueError(f"n_trials is {n_trials}; try at least one candidate.")
    if finalists < 1:
        raise ValueError(f"finalists is {finalists}; heal at least one candidate briefly.")
    if calibration is None or not len(calibration):
        raise ValueError("There is no calibration; give texts or token ids on which to measure importance.")


def _shapes(measured: Measured, ledger: Ledger, budget: SizeBudget) -> Shapes:
    """Return the shapes within a budget that have the most important blocks and that the family accepts."""
    model, described = measured.source, ledger.described
    # Asked again and again for the same sizes: of the random proposals most are known.
    accepts = cache(lambda sizes: _accepts(model, described, dict(sizes)))
    return Shapes(
        described,
        ledger,
        budget,
        lambda count: select_blocks(measured.importance, count).source,
        lambda sizes: accepts(frozenset(sizes.items())),
    )


def _heal_winner(
    heal: Heal, small: PreTrainedModel, source: PreTrainedModel, report: EvaluationSet, seed: int
) -> dict[str, Any]:
    """Heal the winner in place; return its loss then, against the source and against itself before."""
    unhealed = report.nll(small)
    heal(small, source)
    after = report.nll(small.eval())
    gain = paired_bootstrap(after, unhealed, seed=seed).to_dict()
    return {"report": _against(after, report.nll(source), seed), "minus_unhealed": gain}


@dataclass(frozen=True)
class BudgetSearch:
    """The search over shapes.

    Args:
        measured (`Measured`): the source with its importance.
        shapes (`Shapes`): what fits the budget.
        select (`EvaluationSet`): the documents on which candidates are scored.
        dtype (`torch.dtype` or `None`): of the candidates.
        seed (`int`): of the proposals.
    """

    measured: Measured
    shapes: Shapes
    select: EvaluationSet
    dtype: torch.dtype | None
    seed: int

    def run(self, n_trials: int, journal: Journal) -> list[ScoredShape]:
        """Return the candidates: the plain cuts first, then what the Gaussian process proposes."""
        done = journal.read()[:n_trials]
        with tqdm(total=n_trials, initial=len(done), desc="searching", unit="candidate", leave=False) as bar:
            for how, sizes in self.shapes.plain_cuts().items():
                if len(done) < n_trials and not _is_among(sizes, done):
                    self._add(sizes, how, done, journal)
                    bar.update()
            while len(done) < n_trials and (proposal := self._next(done)) is not None:
                self._add(proposal, "search", done, journal)
                bar.update()
        return done

    def judge(self, candidates: Sequence[ScoredShape], winner: ScoredShape, report: EvaluationSet) -> dict[str, Any]:
        """Return the record of the search, with paired intervals on documents that it never saw."""
        source = report.nll(self.measured.source.model)
        as_cut = report.nll(self._cut(winner.sizes))
        on_front = front(candidates)
        rows = []
        judged = [each for each in candidates if each.how != "search" or each in on_front or each.healed is not None]
        for each in tqdm(judged, desc="judging", unit="candidate", leave=False):
            scores = as_cut if each is winner else self._score(each.sizes, report)
            rows.append({**record(each), "report": _against(scores, as_cut, self.seed)})
        return {
            "candidates": [record(each) for each in candidates],
            "front": [record(each) for each in on_front],
            "judged": rows,
            "winner": {**record(winner), "report": _against(as_cut, source, self.seed)},
            "source_nll": source.mean,
            "select": {"documents": len(self.select), "tokens": self.select.num_tokens, "sha256": self.select.sha256},
            "report": {"documents": len(report), "tokens": report.num_tokens, "sha256": report.sha256},
            "calibration_tokens": self.measured.tokens,
            "seed": self.seed,
        }

    def _add(self, sizes: Sizes, how: str, done: list[ScoredShape], journal: Journal) -> None:
        scores = self._score(sizes, self.select)
        layers = self.shapes.blocks(sizes[Axis.LAYERS])
        count = self.shapes.ledger.spent("parameters", sizes, layers)
        done.append(ScoredShape(sizes, self.shapes.spent(sizes), count, scores, how))
        journal.write(done)
        changed = {str(axis): size for axis, size in sizes.items() if size != self.shapes.described.sizes[axis]}
        logger.info("Candidate %d (%s): %s, %.4f nats per token.", len(done), how, changed, scores.mean)

    def _score(self, sizes: Sizes, documents: EvaluationSet) -> DocumentNLL:
        try:
            return documents.nll(self._cut(sizes))
        except NonFiniteLossError as error:
            raise ValueError(f"A cut to {sizes} gives no finite loss; check the source and its dtype.") from error

    def _cut(self, sizes: Sizes) -> PreTrainedModel:
        smaller = cut(self.measured, sizes, self.dtype)
        model = make_model(smaller.config, smaller.tensors, self.measured.source)
        restore_dtypes(model, smaller.tensors)
        return model

    def _next(self, done: Sequence[ScoredShape]) -> Sizes | None:
        """Return the next shape; a proposal that does not fit or is known already is replaced by a random one.

        So is one that leaves much of the budget: its MLP has its full width already, and a model that is larger
        elsewhere is hardly ever worse. Where there is no other, it is taken.
        """
        shapes = self.shapes
        if not shapes.ranges:
            return None
        trials = [each.trial(shapes) for each in done]
        point = propose(trials, [], shapes.ranges, [StudyDirection.MINIMIZE], seed=self.seed)
        sizes = shapes.sizes(point)
        random = np.random.default_rng([self.seed, len(done)])
        smaller: Sizes | None = None
        for _ in range(RANDOM_TRIES):
            if sizes is not None and not _is_among(sizes, done):
                if shapes.spent(sizes) >= LEAST_SPENT * shapes.budget.amount:
                    return sizes
                smaller = smaller or sizes
            shares = {name: side.value(float(random.random())) for name, side in shapes.ranges.items()}
            sizes = shapes.sizes(shares)
        return smaller


def _refuse_outside(budget: SizeBudget, ledger: Ledger) -> None:
    """Refuse a budget that nothing fits, or that the source fits."""
    described = ledger.described
    blocks = range(described.sizes[Axis.LAYERS])
    whole = ledger.spent(budget.kind, described.sizes, blocks)
    if budget.amount >= whole:
        raise ValueError(f"The budget of {budget} is not below the source's {whole:,}; there is nothing to shrink.")
    embedding = ledger.embedding(budget.kind)
    if budget.amount <= embedding:
        raise ValueError(
            f"The budget of {budget} is not above the {embedding:,} of the embedding alone; raise it, or shrink the "
            "hidden size by hand first."
        )
    shapes = Shapes(described, ledger, budget, range, lambda sizes: True)
    least = shapes.spent(shapes.smallest)
    if budget.amount < least:
        raise ValueError(f"The budget of {budget} is below the {least:,} of the smallest shape that is tried.")


def _dependencies(model: ModelSource, budget: SizeBudget, measured: Measured) -> dict[str, Any]:
    """Return what decides which shapes are tried and how they are cut; a search continues only with the same."""
    return {
        "source": model.content_hash(),
        "budget": [budget.kind, budget.amount],
        "calibration_tokens": measured.tokens,
        "importance": measured.importance.blocks.tolist(),
    }


def _accepts(model: ModelSource, described: ModelMap, sizes: Mapping[Axis, int]) -> bool:
    """Tell whether the config of the family takes these sizes: Llama wants a hidden size that its heads divide."""
    try:
        target_config(model.config, described, sizes, LayerMap(tuple(range(sizes[Axis.LAYERS]))), None)
    except ValueError:
        return False
    return True


def _own_tokenizer(model: ModelSource) -> PreTrainedTokenizerBase:
    tokenizer = find_tokenizer(model.location)
    if tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer that transformers can load; pass one.")
    return tokenizer


def _is_among(sizes: Sizes, candidates: Sequence[ScoredShape]) -> bool:
    return any(each.sizes == sizes for each in candidates)


def _against(scores: DocumentNLL, other: DocumentNLL, seed: int) -> dict[str, Any]:
    """Return a loss and its paired difference from another."""
    return {"nll": scores.mean, "difference": paired_bootstrap(scores, other, seed=seed).to_dict()}
