"""The line from a model to its fine-tuned self, at fixed points: WiSE-FT."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_warmscale.checkpoints import refuse_existing, staged_directory, write_json
from hf_warmscale.evaluation import DEFAULT_BATCH_TOKENS, default_max_length
from hf_warmscale.merging.objectives.objective import Domains, prepare_domains
from hf_warmscale.merging.objectives.splits import check_splits
from hf_warmscale.merging.search.confirmation import Confirmation, confirm_winner
from hf_warmscale.merging.search.evaluator import Evaluator, weighed
from hf_warmscale.merging.search.ranks import Ranks
from hf_warmscale.merging.sources import CheckpointSource
from hf_warmscale.merging.weights import one_hot_weights, pair_weights

ALPHAS = tuple(step / 10 for step in range(11))
SWEEP = "sweep.json"


@dataclass(frozen=True, eq=False)
class AlphaSweep:
    """The result of a sweep.

    Args:
        rows (`list[dict]`): alpha, the loss of each domain in nats per token on the select split, and `loss`, that of
            all of them, each token with the same weight.
        alpha (`float`): that of the lowest `loss`.
        confirmation (`Confirmation`): that point against the better of the two ends, on the confirm split.

    Example:

    ```python
    >>> sweep = sweep_alphas("base", "tuned", select=old, confirm=others, alphas=(0.0, 0.5, 1.0))
    >>> [row["alpha"] for row in sweep.rows]
    [0.0, 0.5, 1.0]
    >>> print(sweep.alpha, sweep.confirmation.verdict)
    ```
    """

    rows: list[dict[str, Any]]
    alpha: float
    confirmation: Confirmation

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        judged = {name: value for name, value in vars(self.confirmation).items() if not name.startswith("interval")}
        return {
            "rows": self.rows,
            "alpha": self.alpha,
            **judged,
            "interval": asdict(self.confirmation.interval),
        }


def sweep_alphas(
    start: str | os.PathLike[str],
    end: str | os.PathLike[str],
    *,
    select: Domains,
    confirm: Domains,
    alphas: Sequence[float] = ALPHAS,
    output: str | os.PathLike[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tolerance: float = 1e-4,
    confidence: float = 0.95,
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> AlphaSweep:
    """Score (1 - alpha) start + alpha end at several alphas (WiSE-FT, arXiv:2109.01903), and confirm the best.

    For a search between the points see [`search_merge`].

    Args:
        start (`str` or `PathLike`): the model before fine-tuning: a folder or a Hub id.
        end (`str` or `PathLike`): the model after it.
        select (`Domains`): what the alphas are compared on, such as the old and the new domain; see `search_merge`.
        confirm (`Domains`): other documents of the same domains, that judge the best alpha once.
        alphas (`Sequence[float]`): weights of `end`.
        output (`str` or `PathLike`, *optional*): a new or empty folder for the model that is confirmed, and the rows.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): by default that of `end`.
        tolerance, confidence, max_length, batch_tokens: see `search_merge`.

    Raises:
        ValueError: if there are no alphas or one is not finite, the models do not belong together, or a document is
            in both splits.
        NonFiniteLossError: if a model on the line has no finite loss.

    Example:

    ```python
    >>> domains = {"documentation": old, "german": new}
    >>> sweep = sweep_alphas("base", "tuned", select=domains, confirm=others, output="between")
    >>> sweep.alpha, sweep.confirmation.verdict
    ```
    """
    if not alphas or not all(map(isfinite, alphas)):
        raise ValueError(f"alphas are {list(alphas)}; give at least one number, and only finite ones.")
    if output is not None:
        refuse_existing(output)
    source = CheckpointSource([start, end], Ranks().device)
    source.check()
    options: dict[str, Any] = {
        "tokenizer": tokenizer or source.tokenizer(),
        "max_length": default_max_length(source.model) if max_length is None else max_length,
        "batch_tokens": batch_tokens,
        "seed": 0,
        "distributed": False,
        "allow_public_benchmarks": False,
    }
    selected, judges = prepare_domains(select, **options), prepare_domains(confirm, **options)
    check_splits(selected, judges, {})
    evaluator = Evaluator(source, selected, {}, one_hot_weights(2, 1))
    rows = {alpha: _row(evaluator, alpha) for alpha in dict.fromkeys((*alphas, 0.0, 1.0))}
    best = min(alphas, key=lambda alpha: (rows[alpha]["loss"], -alpha))
    single = int(rows[1.0]["loss"] <= rows[0.0]["loss"])
    judge = Evaluator(source, judges, {}, one_hot_weights(2, 1))
    found = confirm_winner(judge, pair_weights(best), single, 2, tolerance=tolerance, confidence=confidence)
    sweep = AlphaSweep([rows[alpha] for alpha in alphas], best, found)
    if output is not None:
        with staged_directory(output) as folder:
            source.write(Path(folder), found.weights, max_shard_size="5GB")
            write_json(folder / SWEEP, sweep.to_dict())
    return sweep


def _row(evaluator: Evaluator, alpha: float) -> dict[str, Any]:
    outcome = evaluator.trial(pair_weights(alpha), None).to_dict()
    return {"alpha": alpha, **outcome["means"], "loss": weighed(outcome, evaluator.minimised)}
