"""Fit a scaling law to loss measurements."""

from collections.abc import Mapping

from hf_warmscale.options import LAWS, LOSS_UNITS, LawForm, LossUnit
from hf_warmscale.refusals import refuse_unknown
from hf_warmscale.scaling.flags import fit_flags, frame_flags, num_sizes, selection_flags
from hf_warmscale.scaling.frame import SAME_DATA, Frame, Rows, make_frame
from hf_warmscale.scaling.laws import to_parameters
from hf_warmscale.scaling.objective import DELTA, TIGHT, Tolerances
from hf_warmscale.scaling.scaling_law import ScalingLaw
from hf_warmscale.scaling.selection import FIRST_SHARE, select
from hf_warmscale.scaling.solve import make_problem, solve
from hf_warmscale.scaling.uncertainty import resample


def fit_scaling_law(
    frame: Rows | Frame,
    *,
    form: LawForm = "chinchilla",
    fixed: Mapping[str, float] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    unit: LossUnit = "nats",
    delta: float = DELTA,
    first_share: float = FIRST_SHARE,
    mix_cooled: bool = False,
    embeddings: bool | None = None,
    tolerances: Tolerances = TIGHT,
) -> ScalingLaw:
    """Fit a scaling law: variable projection, then L-BFGS on the Huber loss of the log loss (2203.15556, 2404.10102).

    Args:
        frame (`Rows` or `Frame`): a table (a dictionary of columns, a DataFrame, rows, or a CSV, JSON or JSON lines
            file) with the columns `N` (parameters), `D` (training tokens), `loss`, and optionally `run`, `part` or
            `cooled`, `recipe`, `embeddings`; of grown models also `D0` and `N0`, tokens and parameters of the base.
        form (`str`): `"chinchilla"`, E + A/N^alpha + B/D^beta; `"power"`, a N^b + c at fixed data; `"grown"`,
            Chinchilla with D + k D0^p (N/N0)^-q effective tokens.
        fixed (`Mapping[str, float]`, *optional*): parameters that are not fitted, such as those of another family.
        bootstrap (`int`): fits to resampled runs, for the interval; 200 are plenty.
        seed (`int`): of the resampling.
        unit (`str`): of the loss, `"nats"` per token or `"bits"` per byte.
        delta (`float`): of the Huber loss; infinity gives least squares.
        first_share (`float`): points in this first share of a run's tokens are left out.
        mix_cooled (`bool`): keep uncooled points beside cooled ones, which is flagged.
        embeddings (`bool`, *optional*): whether N counts the embeddings; recorded.
        tolerances (`Tolerances`): of L-BFGS.

    Returns:
        `ScalingLaw`: with its parameters, flags, predictions, intervals and backtest.

    Raises:
        ValueError: for a table that cannot be fitted: missing columns, losses that are not positive, one size only.

    Example:

    ```python
    >>> sizes, tokens = [1e7, 2e7, 4e7, 8e7, 1.6e8], [5e8, 2e9, 8e9]
    >>> rows = [
    ...     {"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37} for n in sizes for d in tokens
    ... ]
    >>> law = fit_scaling_law(rows)
    >>> round(law.predict(N=1e9, D=2e10), 4)
    2.464

    ```
    """
    refuse_unknown("form of a scaling law", form, LAWS)
    refuse_unknown("unit", unit, LOSS_UNITS)
    points, dropped = select(
        make_frame(frame, form, embeddings=embeddings), first_share=first_share, mix_cooled=mix_cooled
    )
    problem = make_problem(points, form, fixed=fixed, delta=delta, tolerances=tolerances)
    _refuse_too_little(points, form, fixed or {}, problem.num_free())
    theta, begun = solve(problem, points)
    draws = resample(problem, points, theta, draws=bootstrap, seed=seed) if bootstrap else None
    return ScalingLaw(
        form=form,
        parameters=to_parameters(form, theta, problem.reference),
        objective=problem.objective(points)(theta)[0],
        flags=[*selection_flags(dropped), *frame_flags(points), *fit_flags(problem, points, theta, begun[0])],
        frame=points,
        fixed=dict(fixed or {}),
        delta=delta,
        unit=unit,
        embeddings=points.embeddings,
        resampled=draws,
    )


def _refuse_too_little(frame: Frame, form: LawForm, fixed: Mapping[str, float], free: int) -> None:
    sizes = num_sizes(frame)
    # With one size, A / N^alpha is a constant and cannot be told from E.
    if sizes == 1 and not {"alpha", "b"} & fixed.keys():
        raise ValueError(
            f"All points are of one size ({frame.N[0]:.4g} parameters), so nothing tells how the loss falls with the "
            "size; add sizes, or fix A and alpha of another family."
        )
    if form != "power" and frame.D.max() < SAME_DATA * frame.D.min() and "beta" not in fixed:
        raise ValueError(
            f"All points have {frame.D[0]:.4g} tokens, so nothing tells how the loss falls with the data; use "
            "form='power', add budgets, or fix B and beta."
        )
    if form == "grown" and not (frame.D0 > 0).any():
        raise ValueError("No row is of a grown model (D0 and N0 above 0); use form='chinchilla', or add such runs.")
    if len(frame) < free:
        raise ValueError(f"{len(frame)} points cannot fix {free} parameters of the form {form!r}; add points.")
