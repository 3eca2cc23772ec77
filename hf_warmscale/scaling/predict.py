"""Predict the loss of a size that was not trained, from the folders of smaller runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_warmscale.options import LawForm, LossUnit
from hf_warmscale.scaling.backtest import Backtest
from hf_warmscale.scaling.fit import fit_scaling_law
from hf_warmscale.scaling.frame import SAME_DATA, Frame
from hf_warmscale.scaling.runs import (
    METRIC,
    LadderRun,
    config_at,
    count_parameters,
    ladder_frame,
    read_run,
    recipe_flags,
)
from hf_warmscale.scaling.scaling_law import ScalingLaw


@dataclass(frozen=True)
class Prediction:
    """What a run is expected to end at.

    Args:
        loss (`float`): the validation loss of the cooled model.
        interval (`tuple[float, float]` or `None`): in which the loss of one new run lies with 95 %; `None` if there
            are too few runs to tell.
        backtest (`Backtest`): how the law did on the larger sizes of the runs, beside two baselines.
        flags (`list[str]`): reasons not to trust it.
        num_parameters (`int`): of the model predicted.
        tokens (`int`): of its training.
        law (`ScalingLaw`): that was fitted.

    Example:

    ```python
    >>> runs = ["runs/32", "runs/64", "runs/96", "runs/128"]
    >>> prediction = predict_loss(runs, hidden_size=192, tokens=20_000_000)
    >>> prediction.num_parameters, prediction.tokens
    (815040, 20000000)
    >>> print(f"{prediction.loss:.2f}", prediction.flags)
    ```
    """

    loss: float
    interval: tuple[float, float] | None
    backtest: Backtest
    flags: list[str]
    num_parameters: int
    tokens: int
    law: ScalingLaw

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction and its law, ready for JSON."""
        return {
            "loss": self.loss,
            "interval": self.interval,
            "num_parameters": self.num_parameters,
            "tokens": self.tokens,
            "flags": self.flags,
            "backtest": self.backtest.to_dict(),
            "law": self.law.to_dict(),
        }


def predict_loss(
    runs: Sequence[str | os.PathLike[str]],
    *,
    hidden_size: int | None = None,
    num_parameters: int | None = None,
    tokens: int,
    fixed: Mapping[str, float] | None = None,
    embeddings: bool = True,
    metric: str = METRIC,
    bootstrap: int = 100,
    seed: int = 0,
) -> Prediction:
    """Predict the loss of a larger model from the runs of a muP ladder (2304.06875, 2203.15556).

    Runs at one number of tokens give the law a N^b + c, others E + A/N^alpha + B/D^beta. Only the cooled end of each
    run counts; branches that were annealed from one trunk are resampled together.

    Args:
        runs (`Sequence[str | PathLike]`): the folders of finished `ContinualTrainer` runs, evaluated at their end.
        hidden_size (`int`, *optional*): of the model to predict; its other sizes follow those of the runs.
        num_parameters (`int`, *optional*): instead, its parameters, counted as `embeddings` says.
        tokens (`int`): of its training.
        fixed (`Mapping[str, float]`, *optional*): parameters of the law that are not fitted.
        embeddings (`bool`): whether N counts embedding and readout.
        metric (`str`): the logged validation loss; one that ends in `bits_per_byte` gives a law in bits.
        bootstrap (`int`): fits to resampled runs, for the interval; 0 takes the delta method.
        seed (`int`): of the resampling.

    Returns:
        `Prediction`: with the interval of a new run and the backtest.

    Raises:
        FileNotFoundError: if no training run left a folder.
        ValueError: unless one of the two sizes is given, and for runs without a cooled point or of one size only.

    Example:

    ```python
    >>> prediction = predict_loss(["runs/32", "runs/64", "runs/96", "runs/128"], hidden_size=192, tokens=20_000_000)
    >>> print(prediction.loss, prediction.interval, prediction.flags)
    ```
    """
    if (hidden_size is None) == (num_parameters is None):
        raise ValueError("Give one size to predict: either hidden_size or num_parameters.")
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; give the tokens of the training to predict.")
    if isinstance(runs, str | os.PathLike) or not runs:
        raise ValueError(f"A prediction needs a list of run folders, not {runs!r}.")
    ladder = [read_run(run, metric=metric) for run in runs]
    size = num_parameters or _size_at(ladder, hidden_size or 0, embeddings=embeddings)
    frame = ladder_frame(ladder, embeddings=embeddings)
    unit: LossUnit = "bits" if metric.endswith("bits_per_byte") else "nats"
    law = fit_scaling_law(frame, form=_form(frame, tokens), fixed=fixed, bootstrap=bootstrap, seed=seed, unit=unit)
    return Prediction(
        loss=law.predict(N=size, D=tokens),
        interval=_interval(law, size, tokens),
        backtest=law.backtest,
        flags=[*recipe_flags(ladder), *law.flags, *_distance(frame, size, tokens)],
        num_parameters=size,
        tokens=tokens,
        law=law,
    )


def _size_at(ladder: Sequence[LadderRun], hidden_size: int, *, embeddings: bool) -> int:
    return count_parameters(config_at(ladder, hidden_size))[0 if embeddings else 1]


def _form(frame: Frame, tokens: int) -> LawForm:
    """Return the form that the runs allow.

    Raises:
        ValueError: if all runs have one number of tokens and another one is asked for.
    """
    if frame.D.max() > SAME_DATA * frame.D.min():
        return "chinchilla"
    if not frame.D.min() / SAME_DATA <= tokens <= SAME_DATA * frame.D.max():
        raise ValueError(
            f"All runs were trained on {frame.D[0]:.0f} tokens, so nothing tells the loss at {tokens}; ask for those, "
            "or add runs of other budgets."
        )
    return "power"


def _interval(law: ScalingLaw, size: int, tokens: int) -> tuple[float, float] | None:
    try:
        low, high = law.interval(N=size, D=tokens)
    except ValueError:
        return None
    return low, high


def _distance(frame: Frame, size: int, tokens: int) -> list[str]:
    """Return how far outside the runs the prediction lies, if it is far."""
    factors = {"parameters": size / frame.N.max(), "tokens": tokens / frame.D.max()}
    return [
        f"far extrapolation: {factor:.3g} times the most {name} of the runs"
        for name, factor in factors.items()
        if factor > FAR
    ]


FAR = 8.0
"""A size or budget beyond this factor of the largest run is flagged: no backtest reaches so far."""
