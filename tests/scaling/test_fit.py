"""A law that made the points is found again; units, order and outliers do not matter; doubts are said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_warmscale import fit_scaling_law
from hf_warmscale.options import LawForm
from hf_warmscale.scaling import load_scaling_law, make_frame, published
from hf_warmscale.scaling.laws import Reference, to_coordinates
from hf_warmscale.scaling.objective import SCIPY_DEFAULT, Objective, Tolerances, minimise, stopped_early
from hf_warmscale.scaling.projection import starts
from hf_warmscale.scaling.solve import make_problem, solve
from tests.scaling.measurements import (
    NANOLM_LOSS,
    NANOLM_N,
    TRANSFER,
    TRUE,
    chinchilla,
    grown_ladder,
    ladder,
    true_loss,
)


def scatter(rows: dict[str, Any], order: Any) -> dict[str, Any]:
    return {name: np.asarray(values)[order] for name, values in rows.items()}


# ---- The fit ----


def test_the_law_that_made_the_points_is_found() -> None:
    law = fit_scaling_law(ladder())
    assert law.parameters == pytest.approx(TRUE, rel=1e-4)
    assert law.objective < 1e-12
    assert law.predict(N=1e10, D=2e11) == pytest.approx(true_loss(1e10, 2e11), rel=1e-6)
    assert law.flags == []


def test_a_power_law_at_fixed_data_is_found() -> None:
    sizes = np.array([1e7, 3e7, 1e8, 3e8, 1e9])
    law = fit_scaling_law({"N": sizes, "loss": 900 * sizes**-0.4 + 2.9}, form="power")
    assert law.parameters == pytest.approx({"a": 900.0, "b": -0.4, "c": 2.9}, rel=1e-4)


def test_what_a_base_is_worth_is_found() -> None:
    law = fit_scaling_law(grown_ladder(), form="grown")
    assert law.parameters == pytest.approx({**TRUE, **TRANSFER}, rel=1e-3)
    wanted = {"N": 8e7, "D": 4e8, "D0": 1e10, "N0": 4e7}
    effective = 4e8 + TRANSFER["k"] * 1e10 ** TRANSFER["p"] * 2 ** -TRANSFER["q"]
    assert law.predict(**wanted) == pytest.approx(true_loss(8e7, effective), rel=1e-5)
    assert law.predict(N=8e7, D=4e8) == pytest.approx(true_loss(8e7, 4e8), rel=1e-6)


@pytest.mark.parametrize("held", [["alpha"], ["A"], ["A", "alpha"], ["E"], ["B", "beta"], ["A", "alpha", "E"]])
def test_borrowed_parameters_stay_and_the_others_are_found(held: list[str]) -> None:
    fixed = {name: TRUE[name] for name in held}
    law = fit_scaling_law(ladder(), fixed=fixed)
    assert law.parameters == pytest.approx(TRUE, rel=1e-3)
    assert [law.parameters[name] for name in held] == pytest.approx(list(fixed.values()), rel=1e-12)


def test_one_size_is_enough_where_the_size_term_is_borrowed() -> None:
    tokens = np.array([1e9, 2e9, 4e9, 8e9])
    rows = {"N": [1e8] * 4, "D": tokens, "loss": true_loss(1e8, tokens)}
    law = fit_scaling_law(rows, fixed={"A": TRUE["A"], "alpha": TRUE["alpha"]})
    assert law.parameters["E"] == pytest.approx(TRUE["E"], rel=1e-2)


def test_neither_order_nor_units_matter() -> None:
    rows = ladder(noise=0.01)
    law = fit_scaling_law(rows)
    shuffled = fit_scaling_law(scatter(rows, np.random.default_rng(1).permutation(20)))
    assert shuffled.parameters == pytest.approx(law.parameters, rel=1e-4)
    bits = fit_scaling_law({**rows, "loss": rows["loss"] / np.log(2)}, unit="bits")
    millions = fit_scaling_law({**rows, "N": rows["N"] / 1e6, "D": rows["D"] / 1e9})
    assert bits.unit == "bits"
    assert bits.predict(N=1e9, D=1e10) * np.log(2) == pytest.approx(law.predict(N=1e9, D=1e10), rel=1e-5)
    assert millions.predict(N=1e3, D=10) == pytest.approx(law.predict(N=1e9, D=1e10), rel=1e-5)


def test_one_bad_run_moves_least_squares_and_not_huber() -> None:
    rows = ladder()
    rows["loss"][7] *= 1.1
    robust, squares = fit_scaling_law(rows), fit_scaling_law(rows, delta=np.inf)
    truth = true_loss(1e9, 2e10)
    off, far_off = (abs(law.predict(N=1e9, D=2e10) - truth) for law in (robust, squares))
    assert off < far_off / 10


def test_a_law_comes_back_from_its_file(tmp_path: Path) -> None:
    law = fit_scaling_law(ladder(noise=0.01), bootstrap=5, embeddings=False)
    law.save(tmp_path / "law.json")
    again = load_scaling_law(tmp_path / "law.json")
    assert again.to_dict() == law.to_dict()
    assert again.interval(N=1e9, D=2e10) == pytest.approx(law.interval(N=1e9, D=2e10))


# ---- Which points count ----


def test_warmup_beginnings_and_uncooled_points_are_left_out() -> None:
    rows = ladder()
    extra: dict[str, Any] = {
        "N": [1e7] * 4,
        "D": [1e6, 2e7, 2e8, 5e8],
        "loss": [9.0, 6.0, 5.0, 5.0],
        "run": ["long"] * 4,
        "part": ["warmup", "constant", "constant", "cooled"],
    }
    extra["loss"][3] = true_loss(1e7, 5e8)
    parts = {"run": [f"run {i}" for i in range(20)], "part": ["cooled"] * 20}
    mixed = {name: [*list({**rows, **parts}[name]), *values] for name, values in extra.items()}
    law = fit_scaling_law(mixed)
    assert law.parameters == pytest.approx(TRUE, rel=1e-4)
    assert law.flags == [
        "left out: 1 points of the warmup",
        "left out: 1 points of the beginning of a run",
        "left out: 1 uncooled points",
    ]
    kept = fit_scaling_law(mixed, mix_cooled=True)
    assert "cooled and uncooled points are mixed" in kept.flags


# ---- Doubts ----


def test_few_sizes_and_a_narrow_span_are_flagged() -> None:
    rows = ladder()
    flags = fit_scaling_law(scatter(rows, rows["N"] < 5e7)).flags
    assert [flag.partition(":")[0] for flag in flags[:2]] == ["few sizes", "narrow span"]


def test_mixed_recipes_are_flagged() -> None:
    flags = fit_scaling_law({**ladder(), "recipe": ["a"] * 10 + ["b"] * 10}).flags
    assert "mixed recipes: a, b" in flags


def test_a_term_that_vanishes_is_at_a_bound() -> None:
    rows = ladder()
    flags = fit_scaling_law({**rows, "loss": rows["loss"] - TRUE["E"]}).flags
    assert any(flag.startswith("at a bound: E = 0") for flag in flags)


def test_a_premature_stop_is_flagged() -> None:
    rows = ladder(noise=0.02)
    assert not any("premature" in flag for flag in fit_scaling_law(rows).flags)
    assert any("premature" in flag for flag in fit_scaling_law(rows, tolerances=Tolerances(scale=1e-6)).flags)


def test_parameters_that_the_points_do_not_fix_are_flagged() -> None:
    """Where D is in proportion to N, E + A/N^a + B/D^b is a sum of powers of one variable."""
    rows = ladder(noise=0.01, seed=3)
    one_ratio = scatter(rows, np.isclose(rows["D"] / rows["N"], 20.0))
    extra = {"N": [3.2e8, 6.4e8], "D": [6.4e9, 1.28e10], "loss": [true_loss(3.2e8, 6.4e9), true_loss(6.4e8, 1.28e10)]}
    law = fit_scaling_law({name: [*one_ratio[name], *values] for name, values in extra.items()})
    assert any(flag.startswith(("not identified", "at a bound")) for flag in law.flags)


def test_two_numbers_of_tokens_are_flagged() -> None:
    """E + B/D^beta has two values there, and three parameters: a perfect fit says nothing of a third."""
    rows = {"N": np.tile([1e7, 2e7, 4e7, 8e7, 1.6e8], 3), "D": np.repeat([5e8, 2e9, 8e9], 5)}
    rows["loss"] = true_loss(rows["N"], rows["D"])
    words = "not identified: two numbers of tokens cannot fix E, B and beta; add a third"
    assert words in fit_scaling_law(scatter(rows, rows["D"] < 5e9)).flags
    assert words not in fit_scaling_law(rows).flags
    assert words not in fit_scaling_law(scatter(rows, rows["D"] < 5e9), fixed={"E": TRUE["E"]}).flags


# ---- Intervals ----


def test_the_interval_is_that_of_a_new_run_and_widens_outside() -> None:
    law = fit_scaling_law(ladder(noise=0.01), bootstrap=20)
    inside, far = (np.diff(law.interval(N=n, D=20 * n))[0] for n in (4e7, 4e9))
    assert inside > 2 * 1.96 * 0.005  # not narrower than the noise of one run, give or take its estimate
    assert far > inside
    wide = np.diff(law.interval(N=4e7, D=8e8, level=0.99))[0]
    assert wide > inside


def test_further_checkpoints_of_a_run_do_not_narrow_the_interval() -> None:
    rows = ladder(noise=0.01)
    repeated = {name: np.repeat(values, 6) for name, values in rows.items()}
    repeated["D"] = repeated["D"] * np.tile(np.linspace(0.9999, 1.0, 6), 20)
    names = [str(i) for i in range(120)]
    runs = [str(i // 6) for i in range(120)]
    alone, dependent, independent = (
        np.diff(fit_scaling_law(table, delta=np.inf).interval(N=1e9, D=2e10))[0]
        for table in (rows, {**repeated, "run": runs}, {**repeated, "run": names})
    )
    assert independent < 0.85 * alone
    assert dependent == pytest.approx(alone, rel=0.15)


def test_without_runs_to_spare_there_is_no_interval() -> None:
    rows = ladder()
    five = scatter(rows, [0, 5, 10, 15, 19])
    law = fit_scaling_law(five)
    assert any(flag.startswith("no interval") for flag in law.flags)
    with pytest.raises(ValueError, match="so few runs"):
        law.interval(N=1e9, D=2e10)


# ---- Published data ----


def test_nanolm_widths_predict_the_three_largest() -> None:
    law = fit_scaling_law({"N": NANOLM_N[:7], "loss": NANOLM_LOSS[:7]}, form="power")
    off = np.abs(law.predict(N=NANOLM_N[7:]) / NANOLM_LOSS[7:] - 1)
    assert off.max() < 0.003


def test_the_optimum_of_chinchilla_is_found(data: Path) -> None:
    law = fit_scaling_law(chinchilla(data))
    assert law.objective <= 1.01828e-3
    optimum = {"E": 1.81722, "A": 477.83, "alpha": 0.34731, "B": 2143.42, "beta": 0.36717}
    assert law.parameters == pytest.approx(optimum, rel=1e-3)
    assert law.flags == []


def test_published_constants_have_their_objectives(data: Path) -> None:
    frame = make_frame(chinchilla(data), "chinchilla")
    problem = make_problem(frame, "chinchilla")

    def objective(parameters: dict[str, float]) -> float:
        return problem.objective(frame)(to_coordinates("chinchilla", parameters, problem.reference))[0]

    rounded = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
    assert objective(rounded) == pytest.approx(4.121e-3, rel=1e-3)
    assert objective(published("hoffmann").parameters) == pytest.approx(1.231e-3, rel=1e-3)


def test_the_premature_stop_of_unscaled_tolerances_is_caught(data: Path) -> None:
    """The mean objective is near 4e-6: scipy's defaults end at the start, in the units of N and D as they are."""
    frame = make_frame(chinchilla(data), "chinchilla")
    problem = make_problem(frame, "chinchilla")
    optimum = problem.objective(frame)(solve(problem, frame)[0])[0]
    raw = Objective(Reference(1.0, 1.0).inputs(frame.N, frame.D, frame.D0, frame.N0), np.log(frame.loss))
    bounds = [(0.0, 0.65), (-20.0, 40.0), (1e-3, 3.0), (-20.0, 40.0), (1e-3, 3.0)]
    start = starts(raw.inputs, frame.loss, bounds, weights=frame.loss**2)[0]  # least squares of the loss itself
    stopped, value = minimise(raw, start, bounds, replace(SCIPY_DEFAULT, scale=1 / len(frame)))
    assert value > 1.05 * optimum
    assert stopped_early(raw, stopped, bounds)
    assert minimise(raw, start, bounds)[1] == pytest.approx(optimum, rel=1e-3)


# ---- Refusals ----

BAD: dict[str, tuple[dict[str, Any], LawForm, str]] = {
    "no losses": ({"N": [1e7], "D": [1e9]}, "chinchilla", "no column loss"),
    "no tokens": ({"N": [1e7], "loss": [3.0]}, "chinchilla", "no column D"),
    "no rows": ({"N": [], "D": [], "loss": []}, "chinchilla", "no rows"),
    "a loss of 0": ({"N": [1e7], "D": [1e9], "loss": [0.0]}, "chinchilla", "loss in row 1 is 0"),
    "a loss of NaN": ({"N": [1e7], "D": [1e9], "loss": [float("nan")]}, "chinchilla", "loss in row 1 is nan"),
    "tokens of 0": ({"N": [1e7], "D": [0], "loss": [3.0]}, "chinchilla", "D in row 1 is 0"),
    "a word": ({"N": [1e7], "D": [1e9], "loss": ["low"]}, "chinchilla", "'low', not a number"),
    "one size": ({"N": [1e7, 1e7], "D": [1e9, 2e9], "loss": [3.0, 2.9]}, "chinchilla", "one size"),
    "one budget": ({"N": [1e7, 2e7], "D": [1e9, 1e9], "loss": [3.0, 2.9]}, "chinchilla", "form='power'"),
    "several budgets": ({"N": [1e7, 2e7], "D": [1e9, 2e9], "loss": [3.0, 2.9]}, "power", "at fixed data"),
    "a run twice": (
        {"N": [1e7, 1e7], "D": [1e9, 1e9], "loss": [3.0, 2.9], "run": ["a", "a"]},
        "chinchilla",
        "the run 'a' at the same size",
    ),
    "nothing grown": (
        {"N": [1e7, 2e7], "D": [1e9, 2e9], "loss": [3.0, 2.9], "D0": [0, 0], "N0": [0, 0]},
        "grown",
        "of a grown model",
    ),
    "an endless base": (
        {"N": [1e7, 2e7], "D": [1e9, 2e9], "loss": [3.0, 2.9], "D0": [0, float("inf")], "N0": [0, 1e6]},
        "grown",
        "D0 in row 2 is inf",
    ),
    "half a base": (
        {"N": [1e7, 2e7], "D": [1e9, 2e9], "loss": [3.0, 2.9], "D0": [0, 1e8], "N0": [0, 0]},
        "grown",
        "one of D0 and N0",
    ),
    "too few points": ({"N": [1e7, 2e7], "D": [1e9, 2e9], "loss": [3.0, 2.9]}, "chinchilla", "2 points cannot fix"),
    "two ways to count": (
        {"N": [1e7, 2e7], "D": [1e9, 2e9], "loss": [3.0, 2.9], "embeddings": [True, False]},
        "chinchilla",
        "count them the same way",
    ),
}


@pytest.mark.parametrize(("rows", "form", "words"), BAD.values(), ids=BAD.keys())
def test_a_table_that_cannot_be_fitted_is_refused(rows: dict[str, Any], form: LawForm, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_scaling_law(rows, form=form)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'alpha'"):
        fit_scaling_law(ladder(), fixed={"alfa": 0.3})
    with pytest.raises(ValueError, match="did you mean 'chinchilla'"):
        fit_scaling_law(ladder(), form="chinchila")  # type: ignore[arg-type]  # a mistake of the user's
