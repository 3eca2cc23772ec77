"""The objective of a search: the likelihood of held-out documents, or a function of the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_warmscale.evaluation import DocumentNLL, EvaluationSet, NonFiniteLossError, paired_bootstrap
from hf_warmscale.merging.objectives.public_benchmarks import refuse_public_benchmark
from hf_warmscale.studies import tokens_hash

Loss = Callable[[PreTrainedModel], float | Sequence[float]]
"""A function of the model that returns the loss (lower is better) of each of its examples, or one number."""

Domain = Sequence[str] | Loss
Domains = Domain | Mapping[str, Domain]

ONLY_DOMAIN = "held-out"
SMALLEST_PART = 8
"""Documents: fewer are not representative of the rest."""
STOP_CONFIDENCE = 0.98
"""Of the interval that ends a trial early: at each look, an equally good trial is stopped with probability 1 %."""


class Objective(Protocol):
    """A loss that can be computed on all examples, or on one part of them after another."""

    @property
    def sha256(self) -> str:
        """Identify the examples."""
        ...

    @property
    def tokens_sha256(self) -> str:
        """Identify the token ids that the tokenizer makes of the documents; empty for a function."""
        ...

    @property
    def digests(self) -> frozenset[str]:
        """The hashes of the documents; empty for a function."""
        ...

    @property
    def num_parts(self) -> int:
        """The number of parts; the first is the smallest."""
        ...

    def score_part(self, model: PreTrainedModel, part: int) -> DocumentNLL:
        """Score one part."""
        ...


@dataclass(frozen=True, eq=False)
class DocumentObjective:
    """Token NLL of held-out documents, in parts each of which doubles the number of documents seen.

    Args:
        parts (`tuple[EvaluationSet, ...]`): prepared once.
        distributed (`bool`): share each part among the processes of the default group.
    """

    parts: tuple[EvaluationSet, ...]
    distributed: bool = False

    @property
    def sha256(self) -> str:
        """The hash of all documents and of their order."""
        return sha256("".join(part.sha256 for part in self.parts).encode()).hexdigest()

    @property
    def tokens_sha256(self) -> str:
        """The hash of the token ids of all documents, so that of what a tokenizer makes of them."""
        return tokens_hash(sequence.numpy() for part in self.parts for sequence in part.sequences)

    @property
    def digests(self) -> frozenset[str]:
        """The hashes of the documents."""
        return frozenset(digest for part in self.parts for digest in part.digests)

    @property
    def num_parts(self) -> int:
        """The number of parts; the first is the smallest."""
        return len(self.parts)

    def score_part(self, model: PreTrainedModel, part: int) -> DocumentNLL:
        """Score one part."""
        return self.parts[part].nll(model, distributed=self.distributed)


@dataclass(frozen=True, eq=False)
class LossObjective:
    """A function of the model, called by every process of a distributed search.

    Args:
        name (`str`): of the domain.
        loss (`Loss`): the function.
    """

    name: str
    loss: Loss

    @property
    def sha256(self) -> str:
        """The hash of the function's name: what it computes cannot be hashed."""
        return sha256(getattr(self.loss, "__qualname__", type(self.loss).__qualname__).encode()).hexdigest()

    @property
    def tokens_sha256(self) -> str:
        """Empty: a function tokenizes for itself."""
        return ""

    @property
    def digests(self) -> frozenset[str]:
        """Empty: we cannot know which documents the function reads."""
        return frozenset()

    @property
    def num_parts(self) -> int:
        """One: a function is called as a whole."""
        return 1

    def score_part(self, model: PreTrainedModel, part: int) -> DocumentNLL:
        """Call the function.

        Raises:
            NonFiniteLossError: if it returns NaN or infinity.
            ValueError: if it returns no number, or something other than numbers.
        """
        losses = np.atleast_1d(np.asarray(self.loss(model), dtype=np.float64))
        if losses.ndim != 1 or not len(losses):
            raise ValueError(
                f"The objective {self.name!r} returned {losses.tolist()}; it must return a list of losses."
            )
        if not np.isfinite(losses).all():
            worst = losses[~np.isfinite(losses)][0]
            raise NonFiniteLossError(f"The objective {self.name!r} returned {worst}; it must return finite losses.")
        # Each example counts as one token of one byte, so that the mean per token is the mean of the losses.
        ones = np.ones(len(losses), dtype=np.int64)
        return DocumentNLL(losses, ones, ones, tuple(f"{self.name} {index}" for index in range(len(losses))))


def prepare_domains(
    domains: Domains,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    batch_tokens: int,
    seed: int = 0,
    distributed: bool = False,
    allow_public_benchmarks: bool = False,
) -> dict[str, Objective]:
    """Prepare the objectives of several domains.

    Args:
        domains (`Domains`): documents, a function, or a mapping of names to either.
        tokenizer (`PreTrainedTokenizerBase`): the models'.
        max_length (`int`): predictions in a window.
        batch_tokens (`int`): positions in a batch, padding included.
        seed (`int`): of the order of the documents.
        distributed (`bool`): share the batches among the processes of the default group.
        allow_public_benchmarks (`bool`): accept a public benchmark as a domain.

    Raises:
        ValueError: if there is no domain, if a document is empty, or if a name is that of a public benchmark.
    """
    named: Mapping[str, Domain] = domains if isinstance(domains, Mapping) else {ONLY_DOMAIN: domains}
    if not named:
        raise ValueError("There is no domain to evaluate on; pass documents.")
    prepared: dict[str, Objective] = {}
    for name, domain in named.items():
        refuse_public_benchmark(name, allow=allow_public_benchmarks)
        if callable(domain):
            prepared[name] = LossObjective(name, domain)
            continue
        whole = EvaluationSet.from_documents(domain, tokenizer, max_length=max_length, batch_tokens=batch_tokens)
        prepared[name] = DocumentObjective(_doubling_parts(whole, seed), distributed)
    return prepared


def score(model: PreTrainedModel, objective: Objective) -> DocumentNLL:
    """Score a model on all parts."""
    return DocumentNLL.concatenate([objective.score_part(model, part) for part in range(objective.num_parts)])


def score_against(
    model: PreTrainedModel, objective: Objective, incumbent: DocumentNLL
) -> tuple[float, DocumentNLL, bool]:
    """Score a model part by part, until it is clearly worse than the incumbent on the same documents.

    A stopped trial still gets a value, so that the search learns from it: the incumbent's mean on all documents plus
    the paired difference on the documents seen. (Optuna's pruned trials are invisible to a Gaussian process.)

    Args:
        model (`PreTrainedModel`): the trial.
        objective (`Objective`): what both are scored on.
        incumbent (`DocumentNLL`): the best so far, on all parts.

    Returns:
        `tuple[float, DocumentNLL, bool]`: the value in nats per token, the scores, and whether it was stopped.
    """
    parts: list[DocumentNLL] = []
    for part in range(objective.num_parts):
        parts.append(objective.score_part(model, part))
        seen = DocumentNLL.concatenate(parts)
        if part + 1 == objective.num_parts:
            break
        # The parts are in one order for all trials, so the first documents of both are the same ones.
        same = incumbent.first(len(seen))
        difference = paired_bootstrap(seen, same, confidence=STOP_CONFIDENCE, resamples=1000)
        if difference.low > 0:
            # Not `seen.mean`: the first documents may be easier or harder than the rest, and their mean would not
            # compare with the values of the trials that were scored in full.
            return incumbent.mean + difference.estimate, seen, True
    return seen.mean, seen, False


def _doubling_parts(whole: EvaluationSet, seed: int) -> tuple[EvaluationSet, ...]:
    shuffled = whole.subset(len(whole), seed=seed)
    # Each edge doubles what was seen. Every look is one more chance to stop an equally good trial; doubling keeps the
    # looks few.
    edges, size = [0], max(SMALLEST_PART, len(whole) // 8)
    while size * 2 <= len(whole):
        edges.append(size)
        size *= 2
    edges.append(len(whole))
    return tuple(shuffled.take(range(low, high)) for low, high in pairwise(edges))
