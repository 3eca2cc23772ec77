"""Run the design of `study.yaml`: clones of a base that was trained for long; what has run is stored and not repeated.

    python recipes/reproduce/cloning/run.py --corpora CORPORA --work WORK --output RESULTS [--only clone-10dB]
    python recipes/reproduce/cloning/run.py ... --list            # what there is to run, and what has run

`--corpora` is a folder with `documentation.{train,validation}.jsonl.gz` (see `recipes/reproduce/corpora`). Start the
command in two shells for two jobs of one thread each. An interrupted run continues from its last checkpoint.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_warmscale.checkpoints.run_folder import run_checkpoints
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.resize import grow_from_pretrained, grow_optimizer_state
from hf_warmscale.studies import PlannedRun, listing, open_study, run_all, study_options, wanted_runs
from hf_warmscale.tuning import ProxyTask

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "corpora")]
from corpora import other_files, prepare_rows  # noqa: E402
from trunk import Regime, Rows, train_with_cooldowns  # noqa: E402

ANOTHER_ORDER = 1000
"""A clone sees the rows in the order of the seed of its base plus this."""

Design = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name (`str`): of its result.
        arm (`str`): of the design, or `"base"`.
        seed (`int`): of weights, growth and order of the data.
        octave (`float`): its rate, from the base's.
    """

    name: str
    arm: str
    seed: int
    octave: float = 0.0


def main() -> None:
    """Run what is wanted."""
    options = study_options(__doc__)
    design = yaml.safe_load((HERE / "study.yaml").read_text())
    if options.smoke:
        shrink_budgets(design)
    runs = {run.name: run for run in list_runs(design)}
    every = [PlannedRun(run.name, {"run": asdict(run)}, needed_by(run)) for run in runs.values()]
    plan = wanted_runs(every, options.only)
    if options.list:
        print(listing(plan, options.output))
        return
    if others := other_files(options.corpora, design["domains"]):
        print(f"Other text than that of the stored results: {', '.join(others)}", flush=True)
    length, domains = design["sequence_length"], design["domains"]
    rows = Rows(*prepare_rows(options.corpora, options.work / "data", sequence_length=length, domains=domains))
    tokens = ProxyTask(str(rows.train), validation=str(rows.validation)).tokens_hash()
    study = open_study(options.output, design, tokens=tokens, code=HERE)
    run_all(study, plan, lambda planned: execute(design, runs[planned.name], rows, options.work / "models"))
    print(study.summary([run.name for run in plan]))


def list_runs(design: Design) -> Iterator[Run]:
    """Yield the bases, and every arm at every rate and seed."""
    for seed in design["seeds"]:
        yield Run(f"base-seed{seed}", "base", seed)
    for seed in design["seeds"]:
        for arm in design["arms"]:
            for octave in design["octaves"]:
                yield Run(f"{arm}-octave{octave:+}-seed{seed}", arm, seed, octave)


def needed_by(run: Run) -> tuple[str, ...]:
    """Return the runs whose models a run needs."""
    return () if run.arm == "base" else (f"base-seed{run.seed}",)


def execute(design: Design, run: Run, rows: Rows, models: Path) -> dict[str, Any]:
    """Train one run and return its result."""
    torch.manual_seed(run.seed)
    model, parent = first_model(design, run, models)
    regime = Regime(**design["regime"])
    per_step = regime.batch_size * design["sequence_length"]
    tokens = [ratio * model.num_parameters() for ratio in design["tokens_per_parameter"]]
    budgets = [float(design["base"]["tokens"])] if run.arm == "base" else tokens
    lr = 2.0 ** (design["base"]["log2_lr"] + run.octave)
    start = None if run.arm == "base" else copies_apart(model)
    trained = train_with_cooldowns(
        model,
        lr=lr,
        budgets=[max(round(count / per_step), 2) for count in budgets],
        rows=rows,
        seed=run.seed + (0 if run.arm == "base" else ANOTHER_ORDER),
        regime=regime,
        work=models / run.name,
        parent=parent,
    )
    if run.arm != "base":
        for end in trained["cooled"]:
            if (branch := models / run.name / f"cooled-{end['step']}").is_dir():
                end["copies"] = copies_apart(MupForCausalLM.from_pretrained(run_checkpoints(branch)[-1]))
    return {
        "lr": lr,
        "parameters": model.num_parameters(),
        "tokens_per_step": per_step,
        "starts_from": None if run.arm == "base" else f"base-seed{run.seed}",
        "copies": start,
        **trained,
    }


def first_model(design: Design, run: Run, models: Path) -> tuple[MupForCausalLM, Path | None]:
    """Return the model that a run starts from, and the checkpoint whose moments it keeps."""
    if run.arm == "base":
        shape = design["model"]
        return MupForCausalLM(MupConfig(**shape, mup={f"base_{name}": shape[name] for name in SIZES})), None
    (branch,) = (models / f"base-seed{run.seed}").glob("cooled-*")
    base, arm = run_checkpoints(branch)[-1], design["arms"][run.arm]
    grown: MupForCausalLM = grow_from_pretrained(
        MupForCausalLM.from_pretrained(base),
        **design["sizes"],
        width="clone",
        snr_db=arm["snr_db"],
        seed=run.seed,
    )
    if arm["moments"] == "drop":
        return grown, None
    folder = models / run.name / "start"
    if not folder.is_dir():
        partial = folder.with_name("start.partial")
        shutil.rmtree(partial, ignore_errors=True)
        grown.save_pretrained(partial)
        grow_optimizer_state(base, partial, moments=arm["moments"])
        partial.rename(folder)
    return grown, folder


SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
"""What muP scales."""


@torch.no_grad()
def copies_apart(model: MupForCausalLM) -> dict[str, float]:
    """Return the mean cosine between the two copies of each neuron of the MLPs, and of each hidden coordinate.

    A neuron is all that it reads and all that it writes; a hidden coordinate is its column of the embedding. `clone`
    repeats an axis as a whole, so the copies are the two halves.
    """
    weights = dict(model.named_parameters())
    neurons = []
    for name, gate in weights.items():
        if name.endswith("gate_proj.weight"):
            up, down = (weights[name.replace("gate_proj", other)] for other in ("up_proj", "down_proj"))
            neurons.append(cosine_of_halves(torch.cat([gate, up, down.T], dim=1)))
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    return {"neurons": float(torch.cat(neurons).mean()), "hidden": float(cosine_of_halves(embedding.T).mean())}


def cosine_of_halves(vectors: Tensor) -> Tensor:
    """Return the cosine `[n]` between each of the first n rows of `[2 n, d]` and the one n further.

    Example:

    ```python
    >>> cosine_of_halves(torch.tensor([[1.0, 0.0], [2.0, 0.0]])).tolist()
    [1.0]
    ```
    """
    first, second = vectors.double().chunk(2)
    return cosine_similarity(first, second)


def shrink_budgets(design: Design) -> None:
    """Keep the form of the study and almost none of its cost."""
    design["regime"].update(
        batch_size=2, warmup_steps=2, evaluate_every=4, curve_rows=2, evaluation_rows=4, selection_rows=4
    )
    design.update(sequence_length=64, seeds=[0, 1], octaves=[0], tokens_per_parameter=[0.001, 0.002])
    design["base"].update(tokens=1e3)


if __name__ == "__main__":
    main()
