"""Find the weights of a merge with a Gaussian process, and say honestly whether it is worth making."""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from transformers import PreTrainedTokenizerBase

from hf_warmscale.checkpoints import (
    refuse_existing,
    require_one_language,
    staged_directory,
    write_json,
    write_text,
)
from hf_warmscale.evaluation import DEFAULT_BATCH_TOKENS, NonFiniteLossError, default_max_length
from hf_warmscale.merging.inputs import MergeInput
from hf_warmscale.merging.merge import RESULT
from hf_warmscale.merging.objectives.objective import Domains, Objective, prepare_domains
from hf_warmscale.merging.objectives.splits import check_splits
from hf_warmscale.merging.search.confirmation import confirm_winner, select_winner
from hf_warmscale.merging.search.evaluator import Evaluator
from hf_warmscale.merging.search.journal import open_storage
from hf_warmscale.merging.search.loop import SearchLoop
from hf_warmscale.merging.search.mergeability import NOTICEABLE, Mergeability, look_along
from hf_warmscale.merging.search.pictures import draw_all
from hf_warmscale.merging.search.ranks import Ranks
from hf_warmscale.merging.search.result import JOURNAL, STUDY, MergeResult
from hf_warmscale.merging.search.spaces import AdapterSpace, Space, make_space, open_source
from hf_warmscale.merging.search.trials import Trials
from hf_warmscale.merging.sources import MergeSource
from hf_warmscale.merging.weights import one_hot_weights, pair_weights
from hf_warmscale.options import SpaceName


def search_merge(
    checkpoints: Sequence[str | os.PathLike[str]] | MergeSource,
    *,
    select: Domains,
    confirm: Domains,
    space: SpaceName | Space = "pair",
    n_trials: int = 20,
    seed: int = 0,
    storage: str | os.PathLike[str] | BaseStorage | None = None,
    study_name: str = "merge",
    output: str | os.PathLike[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    limits: Mapping[str, float] | None = None,
    tolerance: float = 1e-4,
    confidence: float = 0.95,
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    allow_public_benchmarks: bool = False,
    max_shard_size: int | str = "5GB",
) -> MergeResult:
    """Search the weights of a merge by Bayesian optimisation on one split, and judge the winner on another.

    The initial points are every checkpoint alone, the uniform average, LAWA and the greedy soup; then Optuna's
    `GPSampler` proposes. A trial overwrites one live model in memory and writes no file. It is stopped early if it is
    clearly worse than the best so far; if its merge has no finite loss it fails, with a warning, and the search goes
    on. The search ends after `n_trials`, or, with one objective, when the expected improvement of three consecutive
    proposals is below `tolerance`. The winner, selected by posterior mean, is compared with the best single checkpoint
    and with the uniform average on `confirm`, which the search never saw. "No merge" is an answer.

    A killed search continues when it is called again with the same arguments. Other processes can help: they call it
    with the same `storage`, and with no `output` or their own. The processes of one `accelerate launch` share the
    documents of each trial.

    Args:
        checkpoints (`Sequence[str | PathLike]` or `MergeSource`): folders or Hub ids, the oldest first; adapters with
            `space="lora"`; or any object that combines several models behind one, see [`MergeSource`].
        select (`Domains`): what the search minimises: the NLL of held-out documents; or a function of the model that
            returns the loss of each of its examples (or one number); or a mapping of domain names to either. Several
            domains that are not in `limits` are several objectives, and the search finds their Pareto front.
        confirm (`Domains`): other documents of the same domains; a function must return the loss of each example.
        space (`str` or `Space`): `"pair"` (two checkpoints, the later one's weight in [0.5, 1]), `"trajectory"`
            (window and exponent of the power family), `"simplex"`, `"groups"` (weights by component and depth),
            `"lora"` (adapters of one base), or an instance of a class of `merging.search.spaces`.
        n_trials (`int`): the most trials, of all processes together and including the initial points.
        seed (`int`): of the proposals and of the order of the documents.
        storage (`str`, `PathLike` or `BaseStorage`, *optional*): a journal file, or any storage URL of Optuna; by
            default a journal beside `output`, or memory without one.
        study_name (`str`): of the study in the storage.
        output (`str` or `PathLike`, *optional*): a new or empty folder for the model and the record of the search.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): by default that of the last checkpoint.
        limits (`Mapping[str, float]`, *optional*): domains that are not minimised: by how many nats per token a merge
            may be worse there than the last checkpoint.
        tolerance (`float`): nats per token; a smaller improvement counts as none.
        confidence (`float`): of the intervals.
        max_length (`int`, *optional*): predictions in a window; by default 1024, or fewer if the model has fewer
            positions.
        batch_tokens (`int`): positions in a batch, padding included.
        allow_public_benchmarks (`bool`): accept a domain with the name of a public benchmark.
        max_shard_size (`int` or `str`): of the model that is written.

    Returns:
        `MergeResult`: weights, verdict, intervals and study.

    Raises:
        NonFiniteLossError: if no merge has a finite loss.
        ValueError: if the checkpoints do not belong together or hold NaN, if `select` and `confirm` share a document,
            a document is empty, or the storage holds a study of another configuration.
        FileNotFoundError: if a checkpoint does not exist.
        OSError: if the disk is full; nothing is left at `output`.

    Example:

    ```python
    >>> steps = [f"run/checkpoint-{step}" for step in (800, 900, 1000)]
    >>> result = search_merge(steps, select=documents[:200], confirm=documents[200:], space="simplex", output="merged")
    >>> print(result.verdict)
    ```
    """
    ranks = Ranks()
    _check_settings(n_trials, tolerance, confidence)
    if output is not None:
        ranks.from_main(lambda: refuse_existing(output))
    # Whatever lists files is a sequence; a source is an object that combines models which it has.
    source = open_source(checkpoints, space, ranks.device) if isinstance(checkpoints, Sequence) else checkpoints
    space = make_space(space, source)
    max_length = default_max_length(source.model) if max_length is None else max_length
    prepare = partial(
        prepare_domains,
        tokenizer=_tokenizer(source, tokenizer),
        max_length=max_length,
        batch_tokens=batch_tokens,
        seed=seed,
        distributed=ranks.distributed,
        allow_public_benchmarks=allow_public_benchmarks,
    )
    selected, judges, limits = prepare(select), prepare(confirm), dict(limits or {})
    check_splits(selected, judges, limits)
    inputs, base = ranks.from_main(source.check), ranks.from_main(source.base)
    configuration = _configuration(space, seed, [*inputs, *([base] if base else [])], selected, max_length, limits)
    last = one_hot_weights(len(source), len(source) - 1)
    evaluator = Evaluator(source, selected, limits, last)
    journal = _journal_file(output, storage)
    temporary = journal if storage is None else None  # beside the output, until that is complete
    open_trials = partial(Trials, num_objectives=len(selected) - len(limits), seed=seed, configuration=configuration)
    trials = ranks.on_main(lambda: open_trials(open_storage(journal or storage), study_name, space))
    loop = SearchLoop(ranks, trials, space, evaluator, len(source))
    try:
        mergeability = _look(ranks, trials, source, space, evaluator)
        loop.run(n_trials, tolerance)
    except ValueError:
        if trials is not None and temporary is not None and not trials.finished():
            temporary.unlink()  # nothing to continue from
        raise
    # The winner is fixed here, before the confirm split is scored for the first time.
    selection = ranks.from_main(lambda: select_winner(loop.trials, loop.singles(), evaluator.minimised))
    confirmation = confirm_winner(
        Evaluator(source, judges, limits, last),
        space.weights(selection.winner),
        selection.single,
        len(source),
        tolerance=tolerance,
        confidence=confidence,
        kind=source.kind,
    )
    settings = {
        "n_trials": n_trials,
        "tolerance": tolerance,
        "confidence": confidence,
        "confirm": _fingerprint(judges),
    }
    result = MergeResult(
        **vars(confirmation),  # the weights and the verdict
        winner=selection.winner,
        best_single=selection.single,
        front=selection.front,
        num_trials=selection.num_trials,
        mergeability=mergeability,
        inputs=tuple(inputs),
        base=base,
        study=trials.study if trials else None,
        settings={**configuration, **settings},
    )
    if output is not None:
        ranks.from_main(lambda: _write(result, loop, source, space, Path(output), journal, max_shard_size))
        if trials is not None and temporary is not None:
            temporary.unlink()
            # The study in the result must not point to the file that was just removed.
            moved = open_storage(Path(output) / JOURNAL)
            return replace(result, study=optuna.load_study(study_name=study_name, storage=moved))
    return result


def _configuration(
    space: Space,
    seed: int,
    models: Sequence[MergeInput],
    selected: Mapping[str, Objective],
    max_length: int,
    limits: Mapping[str, float],
) -> dict[str, str]:
    """Return all that the trials depend on; n_trials, tolerance and `confirm` may change when a search is resumed."""
    return {
        "space": repr(space),
        "seed": str(seed),
        "checkpoints": " ".join(each.sha256[:12] for each in models),
        "select": _fingerprint(selected),
        "tokens": " ".join(f"{domain}:{each.tokens_sha256[:12]}" for domain, each in selected.items()),
        "max_length": str(max_length),
        "limits": repr(sorted(limits.items())),
    }


def _tokenizer(source: MergeSource, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """Return the given tokenizer, or that of the source; both must agree if there are two."""
    if given is None:
        return source.tokenizer()
    try:
        own = source.tokenizer()
    except (OSError, ValueError):
        return given
    for remark in require_one_language({"the tokenizer that was passed": given, "that of the last model": own}):
        warnings.warn(remark, stacklevel=4)
    return given


def _check_settings(n_trials: int, tolerance: float, confidence: float) -> None:
    if n_trials < 1:
        raise ValueError(f"n_trials is {n_trials}; it must be at least 1.")
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance is {tolerance}; it must be a number of nats, 0 or more.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1.")


def _fingerprint(domains: Mapping[str, Objective]) -> str:
    return " ".join(f"{domain}:{objective.sha256[:12]}" for domain, objective in domains.items())


def _journal_file(
    output: str | os.PathLike[str] | None, storage: str | os.PathLike[str] | BaseStorage | None
) -> Path | None:
    """Return the journal: where the caller wants it, or beside the output until the output is complete."""
    if storage is None:
        return None if output is None else Path(output).absolute().with_name(f"{Path(output).name}.journal.log")
    if isinstance(storage, BaseStorage) or "://" in os.fspath(storage):
        return None
    return Path(storage)


def _look(
    ranks: Ranks, trials: Trials | None, source: MergeSource, space: Space, evaluator: Evaluator
) -> Mergeability | None:
    """Look once along the line from the first to the last checkpoint. Adapters are added, not interpolated."""
    if isinstance(space, AdapterSpace):
        return None
    known = ranks.from_main(lambda: trials.noted("mergeability") if trials else None)
    if known is not None:
        return Mergeability.from_dict(known)
    # The line is between the ends of the trajectory, whatever lies between them.
    between = (0.0,) * (len(source) - 2)
    any_finite = False

    def loss(fraction: float) -> float:
        nonlocal any_finite
        first, later = pair_weights(fraction)
        try:
            found = evaluator.quick_score((first, *between, later))
        except NonFiniteLossError:
            return inf
        any_finite = True
        return found

    found = look_along(loss, source.span)
    if trials is not None:
        trials.note("mergeability", found.to_dict())
        if found.barrier > NOTICEABLE and any_finite:  # where nothing is finite, the search ends in an error
            warnings.warn(found.advice, stacklevel=4)
    return found


def _write(
    result: MergeResult,
    loop: SearchLoop,
    source: MergeSource,
    space: Space,
    output: Path,
    journal: Path | None,
    max_shard_size: int | str,
) -> None:
    with staged_directory(output) as folder:
        source.write(folder, result.weights, max_shard_size=max_shard_size)
        write_json(folder / RESULT, result.to_dict())
        write_text(folder / STUDY, "".join(json.dumps(row, allow_nan=False) + "\n" for row in loop.trials.records()))
        if journal is not None:
            shutil.copyfile(journal, folder / JOURNAL)
        draw_all(folder, loop.trials, space, result)
