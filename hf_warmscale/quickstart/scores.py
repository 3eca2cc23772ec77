"""Every model of the quickstart on the same held-out documents, and what may be said about the differences."""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from transformers import AutoModelForCausalLM

from hf_warmscale.evaluation import DocumentNLL, PairedDifference, paired_bootstrap
from hf_warmscale.quickstart.data import QuickstartData
from hf_warmscale.quickstart.runs import Runs
from hf_warmscale.quickstart.text import DOMAINS, Domain

Scores = dict[str, dict[Domain, DocumentNLL]]


@dataclass(frozen=True)
class Comparison:
    """A question that the run answers: is `model` better than `control` on a domain?"""

    question: str
    model: str
    control: str
    domain: Domain
    difference: PairedDifference

    @property
    def verdict(self) -> str:
        """Return `lower`, `higher`, or `not told apart` by a 95 % interval over documents."""
        if self.difference.low <= 0 <= self.difference.high:
            return "not told apart"
        return "lower" if self.difference.high < 0 else "higher"


QUESTIONS: tuple[tuple[str, str, str, Domain], ...] = (
    ("Growing by szp against starting from scratch, same tokens", "grown", "scratch", "prose"),
    ("Growing by szp against training the base on, same tokens", "grown", "trained-on", "prose"),
    ("Replay against none, the old domain", "continued", "no-replay", "prose"),
    ("Replay against none, the new domain", "continued", "no-replay", "code"),
    ("Continuation with replay against before it, the old domain", "continued", "grown", "prose"),
    ("Merged constant phase against its last checkpoint, the new domain", "merged", "last constant", "code"),
    ("Merged constant phase against the annealed end, the new domain", "merged", "continued", "code"),
)


def score_models(models: dict[str, Path], data: QuickstartData) -> Scores:
    """Return the NLL of every document of the evaluation split under every model, by domain."""
    sets = data.held_out("evaluation")
    scores: Scores = {}
    for name, folder in tqdm(models.items(), desc="Scoring", unit="model"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        scores[name] = {domain: sets[domain].nll(model) for domain in DOMAINS}
    return scores


def compare(scores: Scores) -> list[Comparison]:
    """Answer `QUESTIONS` by the paired bootstrap over documents."""
    return [
        Comparison(question, model, control, domain, paired_bootstrap(scores[model][domain], scores[control][domain]))
        for question, model, control, domain in QUESTIONS
    ]


def models_of(runs: Runs, merged: Path) -> dict[str, Path]:
    """Return the models that are scored, by the names that the report uses."""
    return {
        "base": runs.base.checkpoint,
        "grown": runs.grown.checkpoint,
        "trained-on": runs.trained_on.checkpoint,
        "scratch": runs.scratch.checkpoint,
        "continued": runs.continued.checkpoint,
        "no-replay": runs.no_replay.checkpoint,
        "last constant": runs.continued.constant_phase()[-1],
        "merged": merged,
    }
