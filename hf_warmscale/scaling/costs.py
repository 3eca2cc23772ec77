"""What a model of a plan costs: its parameters, and FLOPs per token of training and of inference."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig

from hf_warmscale.architecture import describe
from hf_warmscale.checkpoints import RunFolder, load_config
from hf_warmscale.scaling.runs import count_parameters

ModelOrSize = PreTrainedConfig | int | str | os.PathLike[str]
"""A config, a number of parameters, or a checkpoint: a folder or a Hub id."""

CandidateSource = tuple[ModelOrSize, float | None]
"""A model and the tokens that it was trained on; `None` reads them from the folder of a run."""


@dataclass(frozen=True)
class Cost:
    """A model of a plan.

    Args:
        name (`str`): for the table.
        num_parameters (`int`): as the law counts them.
        training (`float`): FLOPs per token of forward and backward pass.
        inference (`float`): FLOPs per token of the forward pass.
        vocab_size (`int` or `None`): `None` if only the number of parameters is known.
        estimated (`bool`): the FLOPs are 6 N and 2 N, without attention.
    """

    name: str
    num_parameters: int
    training: float
    inference: float
    vocab_size: int | None = None
    estimated: bool = False

    def by_size(self) -> "Cost":
        """Return the cost with 6 N and 2 N, to compare it with that of a model of which only the size is known."""
        return replace(self, training=6.0 * self.num_parameters, inference=2.0 * self.num_parameters, estimated=True)


@dataclass(frozen=True)
class Candidate:
    """A model that exists already.

    Args:
        cost (`Cost`): of the model.
        tokens (`float`): that it was trained on.
    """

    cost: Cost
    tokens: float

    @property
    def flops(self) -> float:
        """What its training cost."""
        return self.cost.training * self.tokens

    def by_size(self) -> "Candidate":
        """Return the candidate with the cost that follows from its size alone."""
        return replace(self, cost=self.cost.by_size())


def cost_of(source: ModelOrSize, *, sequence_length: int, embeddings: bool = True) -> Cost:
    """Return what a model costs.

    Args:
        source (`ModelOrSize`): the model.
        sequence_length (`int`): tokens in a row.
        embeddings (`bool`): whether the number of parameters counts embedding and readout.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the number is not positive, or the architecture cannot be described.
    """
    if isinstance(source, int):
        if source < 1:
            raise ValueError(f"A model of {source} parameters does not exist; give a number such as 360_000_000.")
        # 2 N for the forward pass and twice as much for the backward pass.
        return Cost(short(source), source, 6.0 * source, 2.0 * source, estimated=True)
    config = source if isinstance(source, PreTrainedConfig) else config_at_source(source)
    size = count_parameters(config)[0 if embeddings else 1]
    model_map = describe(config)
    name = short(size) if isinstance(source, PreTrainedConfig) else f"{Path(source).name} ({short(size)})"
    return Cost(
        name,
        size,
        model_map.flops_per_token(sequence_length),
        model_map.flops_per_token(sequence_length, training=False),
        vocab_size=config.get_text_config().vocab_size,
    )


def candidate_of(given: CandidateSource, *, sequence_length: int, embeddings: bool = True) -> Candidate:
    """Return a model that exists already, with the tokens behind it.

    Raises:
        ValueError: if its tokens are not positive, or unknown.
    """
    source, tokens = given
    if tokens is None:
        tokens = None if isinstance(source, int | PreTrainedConfig) else RunFolder(source).total_tokens
    if tokens is None or not tokens > 0:
        raise ValueError(f"The candidate {source} has {tokens} tokens behind it; say how many it was trained on.")
    return Candidate(cost_of(source, sequence_length=sequence_length, embeddings=embeddings), float(tokens))


def config_at_source(source: str | os.PathLike[str]) -> PreTrainedConfig:
    """Load the config of a checkpoint; of the folder of a run, that of its last checkpoint.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        source = (RunFolder(path).checkpoints or [path])[-1]
    return load_config(source)


def short(number: float) -> str:
    """Return a number as people say it: 135M, 5B, 2T.

    Example:

    ```python
    >>> [short(number) for number in (1_500, 135_000_000, 5e9, 2e12)]
    ['1.5K', '135M', '5B', '2T']

    ```
    """
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= 0.9995 * factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.3g}"
