"""Search the trajectories of `train.py`; what was searched is stored and not repeated.

    python recipes/reproduce/merging/searches.py --corpora CORPORA --work WORK --output RESULTS [--only matrix ...]
    python recipes/reproduce/merging/report.py --output RESULTS

Trajectories that are not trained yet are left out; run the command again later.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from scipy.optimize import minimize_scalar
from text import held_out, splits
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from hf_warmscale.checkpoints import open_checkpoint
from hf_warmscale.evaluation import DocumentNLL, EvaluationSet, paired_bootstrap
from hf_warmscale.merging import (
    CheckpointCombiner,
    MergeResult,
    PairSpace,
    SimplexSpace,
    TrajectorySpace,
    lawa_weights,
    merge_checkpoints,
    search_merge,
    uniform_weights,
)
from hf_warmscale.merging.weights import greedy_soup, one_hot_weights, subset_weights
from hf_warmscale.studies import Study, open_study

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "corpora"))
from corpora import prepare_tokenizer  # noqa: E402

Design = dict[str, Any]


class Trajectory:
    """The study, the documents and the checkpoints of one trajectory."""

    def __init__(self, study: Design, corpora: Path, work: Path, output: Path, seed: int) -> None:
        self.study, self.corpora, self.work, self.output, self.seed = study, corpora, work, output, seed
        self.tokenizer = prepare_tokenizer(corpora, work)

    def checkpoint(self, number: int, branch: str = "constant") -> Path:
        """Return the folder of a checkpoint, counted from 1."""
        return self.work / f"seed-{self.seed}" / branch / f"checkpoint-{number * self.study['save_every']}"

    def window(self, size: int) -> list[Path]:
        """Return the latest checkpoints of the trajectory."""
        last = self.study["steps"] // self.study["save_every"]
        return [self.checkpoint(number) for number in range(last - size + 1, last + 1)]

    def documents(self, texts: Sequence[str]) -> EvaluationSet:
        """Prepare documents; the models take 256 positions."""
        limit = self.study["model"]["max_position_embeddings"]
        return EvaluationSet.from_documents(texts, self.tokenizer, max_length=limit)

    def scorer(self, folders: Sequence[Path], documents: EvaluationSet) -> Callable[[Sequence[float]], DocumentNLL]:
        """Return what scores a merge of `folders` by its weights."""
        model = AutoModelForCausalLM.from_pretrained(folders[-1])
        combiner = CheckpointCombiner(model, [open_checkpoint(folder) for folder in folders])

        def score(weights: Sequence[float]) -> DocumentNLL:
            combiner.combine(weights)
            return documents.nll(model)

        return score

    def search(self, folders: Sequence[Path], space: Any, trials: int, seed: int) -> MergeResult:
        """Search on the splits of a seed."""
        select, confirm, _ = splits(self.study, self.corpora, seed)
        return search_merge(folders, select=select, confirm=confirm, space=space, n_trials=trials, seed=seed)


def main() -> None:
    """Parse the arguments and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="that of train.py")
    parser.add_argument(
        "--only", nargs="*", default=["matrix", "methods", "choice", "exhausted", "truth", "landscapes"]
    )
    parser.add_argument("--seeds", type=int, nargs="*", help="trajectories; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    study = yaml.safe_load((HERE / "study.yaml").read_text())
    for part in arguments.only:
        for seed in arguments.seeds or study["seeds"]:
            if (arguments.output / "trajectories" / f"seed-{seed}.json").exists():
                trajectory = Trajectory(study, arguments.corpora, arguments.work, arguments.output, seed)
                PARTS[part](trajectory, partial(store, open_study(arguments.output / part, study, code=HERE)))


def store(study: Study, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run what is not stored yet, and return what is stored."""
    if study.attempt(name, run, {}):
        print(study.path(name), flush=True)
    return study.result(name)


def matrix(trajectory: Trajectory, keep: Callable[..., Any]) -> None:
    """Measure all pairs of checkpoints in the middle."""
    numbers = trajectory.study["matrix"]["checkpoints"]

    def run() -> dict[str, Any]:
        documents = trajectory.documents(splits(trajectory.study, trajectory.corpora, trajectory.seed)[0])
        score = trajectory.scorer([trajectory.checkpoint(number) for number in numbers], documents)
        halves = np.eye(len(numbers))
        losses = [
            [score((a + b) / 2).mean if i <= j else None for j, b in enumerate(halves)] for i, a in enumerate(halves)
        ]
        return {"seed": trajectory.seed, "checkpoints": numbers, "losses": losses}

    keep(f"seed-{trajectory.seed}", run)


def methods(trajectory: Trajectory, keep: Callable[..., Any]) -> None:
    """Compare every way to merge a trajectory with its last checkpoint and with its annealed branch."""
    keep(f"seed-{trajectory.seed}", lambda: compare_methods(trajectory))


def compare_methods(trajectory: Trajectory) -> dict[str, Any]:
    """Search each space, then score all on documents that no search has seen."""
    plan, seed = trajectory.study["searches"], trajectory.seed
    window, few = trajectory.window(plan["window"]), trajectory.window(plan["simplex"])
    merges: dict[str, tuple[list[Path], Sequence[float], int]] = {}
    for numbers in plan["pairs"]:
        folders = [trajectory.checkpoint(number) for number in numbers]
        result = trajectory.search(folders, "pair", plan["trials"]["pair"], seed)
        merges[f"pair {numbers[0]}+{numbers[1]}"] = (folders, pair_of(result), result.num_trials)
        merges[f"checkpoint {numbers[1]}"] = (folders[1:], (1.0,), 0)
    result = trajectory.search(window, "trajectory", plan["trials"]["trajectory"], seed)
    merges["trajectory"] = (window, winner(result, len(window)), result.num_trials)
    merges["greedy soup"] = (window, *greedy(trajectory, window))
    result = trajectory.search(few, "simplex", plan["trials"]["simplex"], seed)
    merges["simplex"] = (few, winner(result, len(few)), result.num_trials)
    merges["uniform"] = (window, uniform_weights(len(window)), 0)
    merges["LAWA"] = (trajectory.window(plan["lawa"]), lawa_weights(plan["lawa"]), 0)
    merges["annealed"] = (
        [trajectory.checkpoint(trajectory.study["steps"] // trajectory.study["save_every"], "annealed")],
        (1.0,),
        0,
    )
    tests = {
        "in": trajectory.documents(splits(trajectory.study, trajectory.corpora, seed)[2]),
        "out": trajectory.documents(held_out(trajectory.study, trajectory.corpora, "out")),
    }
    scores = {
        name: {domain: trajectory.scorer(folders, documents)(weights) for domain, documents in tests.items()}
        for name, (folders, weights, _) in merges.items()
    }
    last = f"checkpoint {trajectory.study['steps'] // trajectory.study['save_every']}"
    return {
        "seed": seed,
        "rows": [
            {
                "method": name,
                "trials": trials,
                "weights": [float(weight) for weight in weights],
                **{domain: scores[name][domain].mean for domain in tests},
                **{
                    f"{domain} against {other}": paired_bootstrap(
                        scores[name][domain], scores[against][domain]
                    ).to_dict()
                    for domain in tests
                    for other, against in (("last", last), ("annealed", "annealed"))
                },
            }
            for name, (_, weights, trials) in merges.items()
        ],
    }


def pair_of(result: MergeResult) -> tuple[float, float]:
    """Return the winner of a pair, accepted or not."""
    later = float(result.winner["lambda"])
    return 1 - later, later


def winner(result: MergeResult, count: int) -> Sequence[float]:
    """Return the weights of the winner, accepted or not."""
    space = TrajectorySpace(count) if "window" in result.winner else SimplexSpace(count)
    return space.weights(result.winner)


def greedy(trajectory: Trajectory, folders: list[Path]) -> tuple[Sequence[float], int]:
    """Return the greedy soup on the select split, and how many models it scored."""
    score = trajectory.scorer(
        folders, trajectory.documents(splits(trajectory.study, trajectory.corpora, trajectory.seed)[0])
    )
    count = len(folders)
    singles = [score(one_hot_weights(count, index)).mean for index in range(count)]
    known = {frozenset([index]): loss for index, loss in enumerate(singles)}
    while True:
        members, done = greedy_soup(singles, known)
        if done:
            return subset_weights(count, members), len(known)
        known[members] = score(subset_weights(count, members)).mean


def choice(trajectory: Trajectory, keep: Callable[..., Any]) -> None:
    """Search pairs and judge the verdict by a grid on the test documents."""
    plan = trajectory.study["choice"]
    for branch in ("constant", "annealed"):
        for earlier, later in plan[branch]:
            folders = [trajectory.checkpoint(earlier, branch), trajectory.checkpoint(later, branch)]
            name = f"seed-{trajectory.seed}-{branch}-{earlier}-{later}"
            keep(name, lambda name=name, folders=folders: judge(trajectory, name, folders))  # type: ignore[misc]


def judge(trajectory: Trajectory, name: str, folders: list[Path]) -> dict[str, Any]:
    """Search one pair on splits of its own."""
    plan = trajectory.study["choice"]
    seed = int.from_bytes(name.encode(), "big") % 2**31
    result = trajectory.search(folders, PairSpace(), plan["trials"], seed)
    score = trajectory.scorer(folders, trajectory.documents(splits(trajectory.study, trajectory.corpora, seed)[2]))
    grid = plan["grid"] if distance(name) > 2 or "constant" not in name else plan["coarse_grid"]
    truth = {weight: score((1 - weight, weight)).mean for weight in grid}
    single = min(truth[1.0], score((1.0, 0.0)).mean)
    return {
        "pair": name,
        "accepted": result.accepted,
        "verdict": result.verdict,
        "trials": result.num_trials,
        "interval": result.interval.to_dict(),
        "true_gain": single - min(single, *truth.values()),
        "truth": {str(weight): loss for weight, loss in truth.items()},
    }


def exhausted(trajectory: Trajectory, keep: Callable[..., Any]) -> None:
    """Search pairs whose later model is the best merge of the line already, so that nothing is left to gain."""
    for earlier, later in trajectory.study["choice"]["exhausted"]:
        name = f"seed-{trajectory.seed}-exhausted-{earlier}-{later}"
        keep(name, lambda name=name, pair=(earlier, later): judge(trajectory, name, best_of_line(trajectory, pair)))  # type: ignore[misc]


def best_of_line(trajectory: Trajectory, pair: tuple[int, int]) -> list[Path]:
    """Return the earlier checkpoint, and the merge of both that is best on the test documents."""
    folders = [trajectory.checkpoint(number) for number in pair]
    best = trajectory.work / f"seed-{trajectory.seed}" / "exhausted" / str(pair[0]) / folders[1].name
    best.parent.mkdir(parents=True, exist_ok=True)
    if not best.exists():
        score = trajectory.scorer(folders, trajectory.documents(splits(trajectory.study, trajectory.corpora, 0)[2]))
        found = minimize_scalar(
            lambda weight: score((1 - weight, weight)).mean,
            bounds=(0.3, 1.0),
            method="bounded",
            options={"xatol": 0.01},
        )
        merge_checkpoints(folders, best, weights=(1 - found.x, found.x))
    return [folders[0], best]


def truth(trajectory: Trajectory, keep: Callable[..., Any]) -> None:
    """Look between the last two points of the grid, where a distant checkpoint might still help."""
    folder = trajectory.output / "choice"
    for path in sorted(folder.glob(f"seed-{trajectory.seed}-constant-*.json")):
        earlier, later = (int(number) for number in path.stem.split("-")[-2:])
        if later - earlier > 2:
            keep(path.stem, lambda pair=(earlier, later): refine(trajectory, pair))  # type: ignore[misc]


def refine(trajectory: Trajectory, pair: tuple[int, int]) -> dict[str, Any]:
    """Return the losses of a distant pair on the test documents near the later checkpoint."""
    folders = [trajectory.checkpoint(number) for number in pair]
    score = trajectory.scorer(folders, trajectory.documents(splits(trajectory.study, trajectory.corpora, 0)[2]))
    return {str(weight): score((1 - weight, weight)).mean for weight in trajectory.study["choice"]["fine_grid"]}


def distance(name: str) -> int:
    """Return how many checkpoints lie between the two of a pair, the later one included."""
    earlier, later = name.split("-")[-2:]
    return int(later) - int(earlier)


def landscapes(trajectory: Trajectory, keep: Callable[..., Any]) -> None:
    """Search the triples whose optimum is farthest from every starting point, one a trajectory."""
    plan = trajectory.study["landscapes"]
    texts = splits(trajectory.study, trajectory.corpora, trajectory.seed)[0][: plan["documents"]]
    documents = trajectory.documents(texts)

    def objective(folders: list[Path]) -> Callable[[Sequence[float]], float]:
        score = trajectory.scorer(folders, documents)
        return lambda weights: score(weights).mean

    def grid_of(numbers: Sequence[int]) -> dict[str, Any]:
        loss = objective([trajectory.checkpoint(number) for number in numbers])
        return {"numbers": list(numbers), "grid": [[*weights, loss(weights)] for weights in simplex_grid()]}

    margins = {
        (measured["seed"], *triple): margin
        for measured in (
            yaml.safe_load(path.read_text()) for path in (trajectory.output / "matrix").glob("seed-*.json")
        )
        for triple, margin in promised_margins(measured).items()
    }
    hardest: dict[int, list[int]] = {}
    for seed, *triple in sorted(margins, key=lambda key: -margins[key]):
        hardest.setdefault(seed, triple)
    if trajectory.seed not in list(hardest)[: plan["trajectories"]]:
        return
    numbers = hardest[trajectory.seed]
    grid = keep(f"seed-{trajectory.seed}-grid", lambda: grid_of(numbers))["grid"]
    folders = [trajectory.checkpoint(number) for number in numbers]
    starts = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1 / 3, 1 / 3, 1 / 3), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    loss = objective(folders)
    best_start = keep(f"seed-{trajectory.seed}-starts", lambda: {"best": min(loss(weights) for weights in starts)})[
        "best"
    ]
    if best_start - min(row[3] for row in grid) < plan["margin"]:
        return
    confirm = splits(trajectory.study, trajectory.corpora, trajectory.seed)[1]
    for seed in plan["seeds"]:

        def run(seed: int = seed) -> dict[str, Any]:
            result = search_merge(
                folders, select=texts, confirm=confirm, space="simplex", n_trials=plan["trials"], seed=seed
            )
            assert result.study is not None
            values = [trial.values[0] for trial in result.study.trials if trial.values]
            draws = np.random.default_rng(seed).dirichlet([1, 1, 1], plan["trials"] - 5)
            return {"seed": seed, "values": values, "random": [best_start, *(loss(weights) for weights in draws)]}

        keep(f"seed-{trajectory.seed}-search-{seed}", run)


def simplex_grid() -> list[tuple[float, float, float]]:
    """Return 66 points."""
    return [(a / 10, b / 10, (10 - a - b) / 10) for a in range(11) for b in range(11 - a)]


def promised_margins(measured: dict[str, Any]) -> dict[tuple[int, int, int], float]:
    """Return what every triple promises, if the loss is quadratic between the measured midpoints."""
    losses, numbers = measured["losses"], measured["checkpoints"]
    margins = {}
    for i in range(len(numbers)):
        for j in range(i):
            for k in range(j):
                alone = [losses[k][k], losses[j][j], losses[i][i]]
                middles = {(0, 1): losses[k][j], (0, 2): losses[k][i], (1, 2): losses[j][i]}

                def loss(w: Sequence[float], alone: Any = alone, middles: Any = middles) -> float:
                    bends = (4 * w[a] * w[b] * (m - (alone[a] + alone[b]) / 2) for (a, b), m in middles.items())
                    return float(np.dot(w, alone) + sum(bends))

                starts = [*alone, *middles.values(), loss((1 / 3, 1 / 3, 1 / 3))]
                margins[numbers[k], numbers[j], numbers[i]] = min(starts) - min(map(loss, simplex_grid()))
    return margins


PARTS = {
    "matrix": matrix,
    "methods": methods,
    "choice": choice,
    "exhausted": exhausted,
    "truth": truth,
    "landscapes": landscapes,
}

if __name__ == "__main__":
    main()
