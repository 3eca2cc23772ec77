"""What a quickstart run consists of; everything follows from the token budget and the seed."""

from dataclasses import asdict, dataclass
from typing import Any

DEFAULT_TOKENS = 2_000_000
"""Sized for about five minutes on two CPU cores."""

MIN_TOKENS = 20_000

SEEDS = 2**32
"""NumPy's generators accept seeds below this."""

SMALL = 500_000
"""Smaller budgets only try the machinery, so fewer documents are evaluated."""

SHARES = {"base": 0.5, "grown": 0.25, "continued": 0.16}
"""One run's length as a share of the budget. Growth has two controls of the same length and the continuation one."""

WARMUPS = {"base": 0.15, "grown": 0.3}
"""Share of a run of each kind in which the rate rises: some 70 steps in both, at the default budget.

After a short warmup a model from scratch stays on the plateau where it knows little more than the frequencies of
single tokens, and a comparison with it would flatter growth."""

BYTES_PER_TOKEN = 3
"""An upper estimate for this tokenizer on this text, held-out files included."""


@dataclass(frozen=True)
class Settings:
    """The plan of a run.

    Args:
        tokens (`int`): the budget of all training together, roughly.
        seed (`int`): of weights, data order, growth and search.
        vocab_size (`int`): of the byte-level BPE tokenizer.
        row_length (`int`): tokens in a training row.
        batch_rows (`int`): rows in an optimizer step.
        learning_rate (`float`): at the base width; muP carries it over to the grown one.
        weight_decay (`float`): at the base width.
        replay (`float`): share of the old domain in the continuation.
        num_checkpoints (`int`): saved along the constant phase of the continuation, for the merge.
        num_trials (`int`): of the merge search.
    """

    tokens: int = DEFAULT_TOKENS
    seed: int = 0
    vocab_size: int = 1024
    row_length: int = 128
    batch_rows: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    replay: float = 0.1
    num_checkpoints: int = 4
    num_trials: int = 12

    def __post_init__(self) -> None:
        if self.tokens < MIN_TOKENS:
            raise ValueError(
                f"A budget of {self.tokens:,} tokens is too small to train on; use {MIN_TOKENS:,} or more."
            )
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"The seed is {self.seed}; it must lie between 0 and {SEEDS - 1}.")

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of one optimizer step."""
        return self.row_length * self.batch_rows

    @property
    def held_out_documents(self) -> int:
        """Return how many documents of each domain and split are scored."""
        return 40 if self.tokens >= SMALL else 12

    @property
    def curve_rows(self) -> int:
        """Return how many rows of each domain are evaluated along a run."""
        return 64 if self.tokens >= SMALL else 16

    def bytes_of(self, domain: str) -> int:
        """Return how much text to collect of a domain, so that few rows are trained on twice."""
        share = 1.0 if domain == "prose" else 0.35
        return max(1_000_000, int(BYTES_PER_TOKEN * self.tokens * share))

    def steps(self, kind: str) -> int:
        """Return the length of a `base`, `grown` or `continued` run in optimizer steps."""
        return max(10, round(self.tokens * SHARES[kind] / self.tokens_per_step))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)
