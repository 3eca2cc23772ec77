"""Which runs the ladder is made of: trunks at a constant rate, and what is cooled off them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hf_warmscale import MupConfig
from hf_warmscale.scaling.runs import count_parameters
from hf_warmscale.studies import PlannedRun

Study = Mapping[str, Any]


@dataclass(frozen=True)
class Trunk:
    """One run at a constant rate, from which every budget is cooled.

    Args:
        kind (`str`): `"rates"`, `"scratch"` or `"grown"`.
        hidden_size (`int`): of the model.
        tokens_per_parameter (`tuple[float, ...]`): the budgets, the smallest first.
        seed (`int`): of the weights and of the order of the rows.
        log2_rate (`float` or `None`): `None` for the inherited rate.
        rate_offset (`float`): added to the inherited one.
        base (`float` or `None`): tokens per parameter behind the base that was grown; `None` from scratch.
    """

    kind: str
    hidden_size: int
    tokens_per_parameter: tuple[float, ...]
    seed: int
    log2_rate: float | None = None
    rate_offset: float = 0.0
    base: float | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        parts = [f"{self.kind}/hidden{self.hidden_size}"]
        parts += [f"base{self.base:g}"] if self.base is not None else []
        parts += [f"log2lr{self.log2_rate:g}"] if self.log2_rate is not None else []
        parts += [f"offset{self.rate_offset:+g}"] if self.rate_offset else []
        return "-".join([*parts, f"seed{self.seed}"])

    def cooled(self, ratio: float) -> str:
        """Return the name of the run that ends at a budget."""
        return f"{self.name}-tpp{ratio:g}"


def plan_runs(study: Study) -> list[PlannedRun]:
    """Return every cooled run; one waits for the smaller budget of its trunk, for the rates, and for its base."""
    trunks = list_trunks(study)
    runs = []
    for trunk in trunks:
        after = needed_by(trunk, trunks, study)
        for ratio in trunk.tokens_per_parameter:
            content = {**asdict(trunk), "trunk": trunk.name, "ratio": ratio}
            runs.append(PlannedRun(trunk.cooled(ratio), content, after))
            after = (trunk.cooled(ratio),)
    return runs


def needed_by(trunk: Trunk, trunks: list[Trunk], study: Study) -> tuple[str, ...]:
    """Return the runs whose results a trunk needs before it starts."""
    if trunk.kind == "rates":
        return ()
    rates = [each.cooled(each.tokens_per_parameter[-1]) for each in trunks if each.kind == "rates"]
    if trunk.base is None:
        return tuple(rates)
    first = study["grown"]["seeds"][0]
    same = [each for each in trunks if (each.hidden_size, each.base) == (trunk.hidden_size, trunk.base)]
    earlier = [each.cooled(each.tokens_per_parameter[-1]) for each in same if each.seed == first != trunk.seed]
    return (*rates, base_of(trunk, study), *earlier)


def base_of(trunk: Trunk, study: Study) -> str:
    """Return the run whose end a trunk is grown from."""
    hidden_size = study["grown"]["base_hidden_size"]
    return Trunk("scratch", hidden_size, (), trunk.seed).cooled(trunk.base or 0.0)


def trunk_of(run: PlannedRun) -> Trunk:
    """Return the trunk of a planned run."""
    fields = {name: run.content[name] for name in Trunk.__dataclass_fields__}
    return Trunk(**{**fields, "tokens_per_parameter": tuple(fields["tokens_per_parameter"])})


def list_trunks(study: Study) -> list[Trunk]:
    """Return all trunks, in an order in which each finds what it needs."""
    return [*_rates(study["rates"]), *_scratch(study["scratch"]), *_grown(study["grown"])]


def _rates(rates: Study) -> Iterator[Trunk]:
    for log2 in rates["log2"]:
        budgets = (float(rates["tokens_per_parameter"]),)
        yield Trunk("rates", rates["hidden_size"], budgets, rates["seed"], log2_rate=float(log2))


def _scratch(groups: list[Study]) -> Iterator[Trunk]:
    for group in groups:
        for hidden_size in group["hidden_sizes"]:
            for seed in group["seeds"]:
                yield Trunk("scratch", hidden_size, tuple(map(float, group["tokens_per_parameter"])), seed)


def _grown(grown: Study) -> Iterator[Trunk]:
    for hidden_size in grown["hidden_sizes"]:
        for base in grown["base_tokens_per_parameter"]:
            for seed in grown["seeds"]:
                offsets = grown["log2_rate_offsets"] if seed == grown["seeds"][0] else [0.0]
                for offset in offsets:
                    budgets = tuple(map(float, grown["tokens_per_parameter"]))
                    yield Trunk("grown", hidden_size, budgets, seed, rate_offset=float(offset), base=float(base))


def model_config(study: Study, hidden_size: int) -> MupConfig:
    """Return the config of a rung."""
    model, heads = study["model"], hidden_size // study["model"]["head_dim"]
    return MupConfig(
        vocab_size=study["data"]["vocab_size"],
        hidden_size=hidden_size,
        intermediate_size=model["intermediate_factor"] * hidden_size,
        num_hidden_layers=model["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=model["head_dim"],
        max_position_embeddings=study["data"]["sequence_length"],
        initializer_range=model["initializer_range"],
        tie_word_embeddings=model["tie_word_embeddings"],
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        mup={
            "base_hidden_size": model["base_hidden_size"],
            "base_num_hidden_layers": model["num_hidden_layers"],
            "rule": model["rule"],
        },
    )


@dataclass(frozen=True)
class Steps:
    """The lengths of a trunk and of its branches, in optimizer steps.

    Args:
        ends (`tuple[int, ...]`): at which each budget is spent.
        branches (`tuple[int, ...]`): at which each branch leaves the trunk.
        warmup (`int`): of the trunk.
    """

    ends: tuple[int, ...]
    branches: tuple[int, ...]
    warmup: int


def steps_of(study: Study, trunk: Trunk) -> Steps:
    """Return how long a trunk and its branches are."""
    training = study["training"]
    tokens_per_step = training["rows_per_step"] * study["data"]["sequence_length"]
    parameters = count_parameters(model_config(study, trunk.hidden_size))[0]
    ends = tuple(round(ratio * parameters / tokens_per_step) for ratio in trunk.tokens_per_parameter)
    branches = tuple(round(end * (1 - training["cooldown_fraction"])) for end in ends)
    warmup = max(training["warmup_steps"], round(training["warmup_fraction"] * branches[-1]))
    return Steps(ends, branches, warmup)
