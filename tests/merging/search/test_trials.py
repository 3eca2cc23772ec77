"""The study behind a search, on analytic losses: proposals, resumes, sweeps, and the stopping rule."""

import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import optuna
import psutil
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from hf_warmscale.evaluation import DocumentNLL
from hf_warmscale.merging.search.evaluator import Outcome
from hf_warmscale.merging.search.initial_points import fixed_initial_points, label_of
from hf_warmscale.merging.search.journal import open_journal, open_storage
from hf_warmscale.merging.search.liveness import SILENT_SECONDS, Watch, beating, start_of, this_worker
from hf_warmscale.merging.search.spaces import PairSpace, Point, SimplexSpace, Space
from hf_warmscale.merging.search.trials import Trials
from hf_warmscale.merging.weights import subset_weights

CONFIGURATION = {"space": "a", "seed": "0"}


def outcome(value: float, violations: Mapping[str, float] | None = None, *, stopped: bool = False) -> Outcome:
    ones = np.ones(1, dtype=np.int64)
    scores = {"held-out": DocumentNLL(np.array([value]), ones, ones, ("d",))}
    return Outcome((value,), violations or {}, scores, stopped)


def new_trials(
    storage: optuna.storages.BaseStorage | None = None, space: Space | None = None, seed: int = 0
) -> Trials:
    return Trials(
        storage or InMemoryStorage(),
        "merge",
        space or PairSpace(alpha=0.0),
        num_objectives=1,
        seed=seed,
        configuration=CONFIGURATION | {"seed": str(seed)},
    )


def bowl(weight: float) -> float:
    return 3.0 + 0.1 * (weight - 0.62) ** 2


def advance(trials: Trials, count: int) -> None:
    """Ask and tell on the bowl, the two ends first."""
    starts = {0: 1.0, 1: 0.0}
    for _ in range(count):
        done = len(trials.finished())
        start = (str(done), {"lambda": starts[done]}) if done in starts else None
        trial = begin(trials, start)
        trials.tell(trial, outcome(bowl(trial.params["lambda"])))


def begin(trials: Trials, start: tuple[str, Point] | None = None) -> optuna.Trial:
    trial = trials.ask(start, limit=100)
    assert trial is not None
    return trial


def history(trials: Trials) -> list[tuple[float, float]]:
    return [(trial.params["lambda"], trial.values[0]) for trial in trials.finished()]


def test_a_process_that_comes_back_asks_for_the_same_points(tmp_path: Path) -> None:
    """Nothing that decides a proposal lives in the process."""
    whole = new_trials()
    advance(whole, 7)
    for _ in range(7):
        advance(new_trials(open_journal(tmp_path / "journal.log")), 1)
    assert history(new_trials(open_journal(tmp_path / "journal.log"))) == history(whole)


def test_another_seed_asks_for_other_points() -> None:
    one, two = new_trials(seed=0), new_trials(seed=1)
    for trials in (one, two):
        advance(trials, 4)
    assert history(one)[:2] == history(two)[:2]
    assert history(one)[2:] != history(two)[2:]


@pytest.mark.parametrize("slope", [0.02, -0.02, 1e-5])
def test_no_point_is_tried_twice(slope: float) -> None:
    """A loss whose least is at an edge: beside a running trial the sampler proposes that edge again and again."""
    trials = new_trials()
    advance(trials, 2)
    running: list[optuna.Trial] = []
    for _ in range(9):
        running.append(begin(trials))
        if len(running) == 2:
            first = running.pop(0)
            trials.tell(first, outcome(3.0 + slope * first.params["lambda"]))
    points = sorted(trial.params["lambda"] for trial in (*trials.finished(), *trials.running()))
    assert np.diff(points).min() > 1e-4


def kill(trial: optuna.Trial) -> None:
    """As if the worker of a trial had been killed: no process has this id."""
    trial.set_user_attr("worker", this_worker().replace("/", "/9999999", 1))


def test_a_killed_trial_is_failed_and_tried_again() -> None:
    trials = new_trials()
    advance(trials, 3)
    lost = begin(trials)
    kill(lost)
    trials.sweep()
    assert [trial.state for trial in trials.study.trials] == [TrialState.COMPLETE] * 3 + [TrialState.FAIL]
    again = begin(trials)
    assert again.params == lost.params
    trials.tell(again, outcome(bowl(again.params["lambda"])))
    whole = new_trials()
    advance(whole, 4)
    assert history(trials) == history(whole)


def test_a_lost_proposal_is_tried_again_after_others_have_finished() -> None:
    """What a dead worker of several was busy with."""
    trials = new_trials()
    advance(trials, 3)
    lost, other = begin(trials), begin(trials)
    assert other.params != lost.params
    kill(lost)
    trials.tell(other, outcome(bowl(other.params["lambda"])))
    trials.sweep()
    assert begin(trials).params == lost.params
    assert begin(trials).params != lost.params


def test_of_two_workers_at_one_point_the_later_gives_way() -> None:
    trials = new_trials()
    first = begin(trials, ("1", {"lambda": 1.0}))
    assert trials.ask(("1", {"lambda": 1.0}), limit=100) is None
    assert [trial.number for trial in trials.running()] == [first.number]


def test_of_two_workers_at_the_last_trial_the_later_gives_way() -> None:
    trials = new_trials()
    advance(trials, 3)
    last = begin(trials)
    assert trials.ask(None, limit=4) is None
    assert [trial.number for trial in trials.running()] == [last.number]


class Raced(InMemoryStorage):
    """A storage in which another worker is faster, once: it does all of its work just before the next trial begins."""

    def __init__(self) -> None:
        super().__init__()
        self.faster: Callable[[], object] | None = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        faster, self.faster = self.faster, None
        if faster is not None:
            faster()
        return super().create_new_trial(study_id, template_trial)


@pytest.mark.parametrize("point", [1.0, 0.0])
def test_a_point_that_fails_while_a_worker_asks_for_it_is_not_tried_again(point: float) -> None:
    """At another point, the failed trial takes the last place within the limit."""
    storage = Raced()
    trials, other = new_trials(storage), new_trials(storage)
    storage.faster = lambda: other.fail(begin(other, ("1", {"lambda": point})), "the loss is NaN")
    assert trials.ask(("1", {"lambda": 1.0}), limit=2 if point == 1.0 else 1) is None
    assert not trials.running()


def test_a_trial_of_another_program_is_not_touched() -> None:
    """Optuna's dashboard and `Study.ask` begin trials without a worker."""
    trials = new_trials()
    trials.study.ask()
    trials.sweep()
    advance(trials, 3)
    assert not trials.running()
    whole = new_trials()
    advance(whole, 3)
    assert history(trials) == history(whole)


def test_a_study_may_lack_what_its_version_did_not_store() -> None:
    storage = InMemoryStorage()
    new_trials(storage)
    for configuration in (CONFIGURATION | {"tokens": "b"}, CONFIGURATION):
        Trials(storage, "merge", PairSpace(), num_objectives=1, seed=0, configuration=configuration)
    with pytest.raises(ValueError, match="with another space"):
        Trials(storage, "merge", PairSpace(), num_objectives=1, seed=0, configuration={"seed": "0"})


def test_a_lost_proposal_is_tried_again_though_another_worker_withdrew_from_it() -> None:
    """Two workers retry it at once, the later one withdraws, and the earlier one is lost too."""
    trials = new_trials()
    advance(trials, 3)
    first = begin(trials)
    kill(first)
    trials.sweep()
    second = begin(trials)
    assert trials.ask((str(second.number), second.params), limit=100) is None  # as a worker that asked at that moment
    other = begin(trials)  # without it, the same point would be proposed again
    trials.tell(other, outcome(bowl(other.params["lambda"])))
    kill(second)
    trials.sweep()
    assert begin(trials).params == first.params


def test_a_trial_of_a_living_worker_is_left_alone() -> None:
    trials = new_trials()
    begin(trials, ("1", {"lambda": 1.0}))
    trials.sweep()
    assert len(trials.running()) == 1


def test_a_worker_of_this_machine_is_alive_while_its_process_runs() -> None:
    assert not Watch().is_gone(this_worker(), 0, 0)
    host, process, created = this_worker().rsplit("/", 2)
    assert Watch().is_gone(f"{host}/{process}/{float(created) - 100:g}", 0, 0)  # the id was used again
    ended = psutil.Popen(["sleep", "30"])
    worker = f"{host}/{ended.pid}/{start_of(psutil.Process(ended.pid))}"
    assert not Watch().is_gone(worker, 0, 0)
    ended.kill()
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:  # nobody has waited for it
        time.sleep(0.01)
    assert Watch().is_gone(worker, 0, 0)
    ended.wait()


def test_setting_the_clock_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = this_worker()
    # On Linux psutil adds the time of the boot, which follows the clock, to the ticks that the kernel counts.
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: 0.0)
    assert not Watch().is_gone(worker, 0, 0)


def test_a_storage_that_fails_for_a_moment_silences_no_worker() -> None:
    again, failures = threading.Event(), iter([OSError("No space left on device")])

    def beat() -> None:
        for failure in failures:
            raise failure
        again.set()

    with beating(beat, every=0.001):
        assert again.wait(timeout=60)


def test_a_worker_of_another_container_is_no_process_of_this_one() -> None:
    """Containers may share a host name, and each has a process 1."""
    assert not Watch().is_gone(f"{socket.gethostname()}/1/0.00", 0, 0)


def test_a_worker_of_another_machine_is_alive_while_it_beats() -> None:
    """However slow its trial is; and its silence is counted from when it was first seen, not from its own clock."""
    now = 0.0
    watch = Watch(clock=lambda: now)
    elsewhere = f"elsewhere/{this_worker().partition('/')[2]}"
    for beats in range(20):
        assert not watch.is_gone(elsewhere, 7, beats)
        now += SILENT_SECONDS
    assert not watch.is_gone(elsewhere, 7, 19)
    assert not watch.is_gone(elsewhere, 8, 0)
    now += 1.0
    assert watch.is_gone(elsewhere, 7, 19)
    assert not watch.is_gone(elsewhere, 8, 0)


def test_a_busy_worker_is_seen_to_be_busy(tmp_path: Path) -> None:
    """By another process, through the storage; and no longer once the trial is done."""
    trials, other = (new_trials(open_journal(tmp_path / "journal.log")) for _ in range(2))
    trial = begin(trials, ("1", {"lambda": 1.0}))
    threads = threading.active_count()
    with trials.busy(trial, every=0.01):
        while other.running()[0].user_attrs.get("beats", 0) < 3:
            time.sleep(0.01)
    assert threading.active_count() == threads
    trials.tell(trial, outcome(3.0))
    (row,) = other.records()
    assert row["state"] == "COMPLETE" and "beats" not in row


def test_a_trial_is_tried_again_when_its_machine_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = new_trials()
    lost = begin(trials, ("1", {"lambda": 1.0}))
    lost.set_user_attr("worker", "elsewhere/1/0.00")
    trials.sweep()
    assert len(trials.running()) == 1
    lost.set_user_attr("beats", 1)
    monkeypatch.setattr("hf_warmscale.merging.search.liveness.SILENT_SECONDS", -1.0)
    trials.sweep()
    assert len(trials.running()) == 1
    trials.sweep()
    assert not trials.running()


def test_what_is_told_of_a_trial_that_was_given_up_is_dropped() -> None:
    """A worker that was frozen so long that others lost faith, and then woke up."""
    trials = new_trials()
    advance(trials, 3)
    frozen = begin(trials)
    kill(frozen)
    trials.sweep()
    trials.tell(frozen, outcome(1.0))
    assert [trial.state for trial in trials.study.trials][3:] == [TrialState.FAIL]
    again = begin(trials)
    assert again.params == frozen.params and again.number == 4


def test_workers_that_ask_at_once_get_different_points(tmp_path: Path) -> None:
    storage = open_journal(tmp_path / "journal.log")
    trials = new_trials(storage)
    advance(trials, 3)
    points = [begin(new_trials(storage)).params["lambda"] for _ in range(3)]
    assert len({round(point, 6) for point in points}) == 3


def test_the_search_ends_when_nothing_is_promised() -> None:
    trials = new_trials()
    advance(trials, 3)
    assert not trials.converged(tolerance=1e-4, patience=3)
    while not trials.converged(tolerance=1e-4, patience=3):
        advance(trials, 1)
        assert len(trials.finished()) < 15
    assert min(value for _, value in history(trials)) < 3.0 + 1e-5


def test_limits_steer_the_search() -> None:
    """The best of the bowl is out of bounds: what is proposed ends up at the bound."""
    trials = new_trials()
    for start in (1.0, 0.0, *[None] * 8):
        trial = begin(trials, None if start is None else (str(start), {"lambda": start}))
        weight = trial.params["lambda"]
        trials.tell(trial, outcome(bowl(weight), {"old": 0.8 - weight}))
    feasible = [weight for weight, _ in history(trials) if weight >= 0.8]
    assert min(feasible) < 0.82


def test_the_posterior_mean_sees_through_noise() -> None:
    trials = new_trials()
    noise = np.random.default_rng(0)
    for step in range(12):
        trial = begin(trials, (str(step), {"lambda": step / 11}))
        trials.tell(trial, outcome(bowl(step / 11) + 0.002 * noise.normal()))
    means = trials.posterior_means(trials.finished())
    truth = [bowl(step / 11) for step in range(12)]
    observed = [trial.values[0] for trial in trials.finished()]
    assert np.std(np.subtract(means, truth)) < np.std(np.subtract(observed, truth))


def test_a_study_of_another_search_is_refused() -> None:
    storage = InMemoryStorage()
    new_trials(storage)
    with pytest.raises(ValueError, match=r"made with another space \(a, now b\)"):
        Trials(storage, "merge", PairSpace(), num_objectives=1, seed=0, configuration={"space": "b", "seed": "0"})


def test_a_torn_entry_of_the_journal_is_dropped(tmp_path: Path) -> None:
    """What a kill in the middle of a write leaves; without the repair the next entry is glued to it."""
    path = tmp_path / "journal.log"
    advance(new_trials(open_journal(path)), 3)
    with path.open("ab") as file:
        file.write(b'{"op_code":8,"worker_id":"ab')
    trials = new_trials(open_journal(path))
    advance(trials, 1)
    assert len(new_trials(open_journal(path)).finished()) == 4


def test_a_journal_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        open_journal(tmp_path / "nothing" / "journal.log")


@pytest.mark.parametrize(
    ("url", "words"), [("nosql:///x", "nosql storage.*Can't load plugin"), ("sqlite://[", "Invalid SQLite URL")]
)
def test_a_url_that_opens_nothing(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_storage(url)


def test_a_simplex_is_searched_better_than_at_random() -> None:
    """Three checkpoints in a bowl off the centre: within 1e-3 nats of a grid of 66 points, in 20 trials."""
    target = np.array([0.15, 0.25, 0.6])

    def loss(weights: tuple[float, ...]) -> float:
        return 3.0 + 0.4 * float(np.sum((np.array(weights) - target) ** 2)) + 0.1 * float(weights[0] * weights[2])

    grid = [(a / 10, b / 10, (10 - a - b) / 10) for a in range(11) for b in range(11 - a)]
    assert len(grid) == 66
    space = SimplexSpace(3)
    trials = new_trials(space=space)
    for members in fixed_initial_points(3):
        point = space.point(subset_weights(3, members))
        assert point is not None
        trial = begin(trials, (label_of(members), point))
        trials.tell(trial, outcome(loss(space.weights(trial.params))))
    while len(trials.finished()) < 20 and not trials.converged(1e-4, 3):
        trial = begin(trials)
        trials.tell(trial, outcome(loss(space.weights(trial.params))))
    best = min(trial.values[0] for trial in trials.finished())
    assert best < min(loss(weights) for weights in grid) + 1e-3
    assert math.isfinite(best)
