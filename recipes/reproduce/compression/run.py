"""Run the designs A and B of `study.yaml`; what has run is stored and not repeated.

    python recipes/reproduce/compression/run.py --corpora CORPORA --work WORK --output RESULTS [--only A]
    python recipes/reproduce/compression/run.py ... --list            # what there is to run, and what has run

`--corpora` is a folder with `documentation.{train,validation}.jsonl.gz` (see `recipes/reproduce/corpora`). Start the
command in two shells for two jobs of one thread each. An interrupted run continues from its last checkpoint. A study
that is resumed with another version, design or corpus is refused. `report.py` prints the tables.
"""

import math
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from runs import Run, best_of, list_runs
from transformers import PreTrainedModel

from hf_warmscale import MagnitudePruningCallback, shrink_from_pretrained, shrink_to_budget
from hf_warmscale.architecture import describe
from hf_warmscale.checkpoints.run_folder import run_checkpoints
from hf_warmscale.compression.compressed import Compression, compressed
from hf_warmscale.evaluation import DocumentNLL, EvaluationSet, NonFiniteLossError
from hf_warmscale.merging.objectives.splits import split_documents
from hf_warmscale.mup import MupConfig, MupForCausalLM
from hf_warmscale.resize import grow_from_pretrained
from hf_warmscale.studies import PlannedRun, listing, open_study, run_all, study_options, wanted_runs
from hf_warmscale.training import ContinualTrainer, HealingTrainer, ReplayMixture, Schedule, Stage
from hf_warmscale.training.data.packing import load_packed
from hf_warmscale.tuning import ProxyTask
from hf_warmscale.tuning.proxy import Diverged

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "corpora")]
from corpora import documents, other_files, prepare_rows, prepare_tokenizer  # noqa: E402
from trunk import Regime, Rows, curve_of, train_stage, train_with_cooldowns  # noqa: E402

ANOTHER_ORDER = 1000
"""What trains on a model of a seed sees the rows in the order of this seed more."""


def main() -> None:
    """Run what is wanted."""
    options = study_options(__doc__)
    design = yaml.safe_load((HERE / "study.yaml").read_text())
    if options.smoke:
        shrink_budgets(design)
    runs = {run.name: run for run in list_runs(design)}
    every = [PlannedRun(name, {"run": asdict(run)}, run.after) for name, run in runs.items()]
    plan = wanted_runs(every, options.only)
    if options.list:
        print(listing(plan, options.output))
        return
    if others := other_files(options.corpora, design["domains"]):
        print(f"Other text than that of the stored results: {', '.join(others)}", flush=True)
    laboratory = Laboratory(design, options.corpora, options.work, options.output)
    study = open_study(options.output, design, tokens=laboratory.tokens, code=HERE)
    run_all(study, plan, lambda planned: laboratory.execute(runs[planned.name]))
    print(study.summary([run.name for run in plan]))


class Laboratory:
    """The data of the studies, and how each kind of run is made.

    Args:
        design (`dict`): of `study.yaml`.
        corpora (`Path`): the text.
        work (`Path`): for rows and checkpoints.
        results (`Path`): where results are stored.
    """

    def __init__(self, design: dict[str, Any], corpora: Path, work: Path, results: Path) -> None:
        self.design, self.work, self.results = design, work, results
        length, domains = design["sequence_length"], design["domains"]
        self.rows = Rows(*prepare_rows(corpora, work / "data", sequence_length=length, domains=domains))
        self.tokens = ProxyTask(str(self.rows.train), validation=str(self.rows.validation)).tokens_hash()
        self.tokenizer = prepare_tokenizer(corpora, work / "data", domains)
        kept = design["documents"]
        texts = [text[: kept["characters"]] for text in documents(corpora, "validation", domains)]
        self.texts = [text for text in texts if len(text) == kept["characters"]][: kept["count"]]
        self.select, self.judge = (
            EvaluationSet.from_documents(half, self.tokenizer, max_length=length)
            for half in split_documents(self.texts, "the validation text")
        )
        self.regime = Regime(**design["regime"])
        self.per_step = self.regime.batch_size * length

    def execute(self, run: Run) -> dict[str, Any]:
        """Train one run and return its result."""
        torch.manual_seed(run.seed)
        kinds = {"train": self.train, "prune": self.prune, "base": self.base, "grown": self.grown, "heal": self.heal}
        return kinds[run.kind](run)

    # ---- A: train large, then compress ----

    def train(self, run: Run) -> dict[str, Any]:
        """Train a size from scratch, with the FLOPs of the smallest."""
        part = self.design["A"]
        config = self.config(part["sizes"][run.arm])
        flops = [describe(each).flops_per_token(self.design["sequence_length"]) for each in (self.config({}), config)]
        tokens = float(part["tokens_of_the_smallest"]) * flops[0] / flops[1]
        rate = run.log2_lr if run.log2_lr is not None else best_of(run.after, self.results)[1]
        return self.trained(run, MupForCausalLM(config), rate, tokens, seed=run.seed)

    def prune(self, run: Run) -> dict[str, Any]:
        """Prune a trained size step by step, and measure every checkpoint in every number of bits."""
        part = self.design["A"]["prune"]
        start, rate = self.parent(run)
        model = self.cooled(start)
        flops = [
            describe(each).flops_per_token(self.design["sequence_length"]) for each in (self.config({}), model.config)
        ]
        tokens = part["share_of_flops"] * float(self.design["A"]["tokens_of_the_smallest"]) * flops[0] / flops[1]
        sparsities = part["sparsities"]
        every = max(round(tokens / self.per_step / (len(sparsities) + 1)), 2)
        keep = [every * (stage + 1) + every - 1 for stage in range(len(sparsities))]  # the last step of each sparsity
        log2_lr = rate + float(run.octave or 0.0)
        pruning = MagnitudePruningCallback(sparsities, every)
        folder = self.stage(run, model, "prune", keep[-1], log2_lr, [every - 1, *keep], callbacks=[pruning])
        if folder is None:
            return {"log2_lr": log2_lr, "select": math.nan}
        steps = dict(zip([0.0, *sparsities], [every - 1, *keep], strict=True))
        rows = [row for share, step in steps.items() for row in self.in_bits(folder / f"checkpoint-{step}", share)]
        return {"log2_lr": log2_lr, "starts_from": start, "select": rows[0]["select"], "rows": rows}

    def in_bits(self, checkpoint: Path, sparsity: float) -> list[dict[str, Any]]:
        """Return size and losses of a checkpoint as it is stored, and in each number of bits."""
        model = MupForCausalLM.from_pretrained(checkpoint)
        described, rows = describe(model.config), []
        for bits in (None, *self.design["A"]["bits"]):
            how = Compression(bits, sparsity, None, ("hidden",), ("embedding", "hidden", "readout"))
            with compressed(model, described, how) as size:
                rows.append({"sparsity": sparsity, "bits": bits, "bytes": size, **self.losses(model)})
        return rows

    # ---- B: shrink and heal ----

    def base(self, run: Run) -> dict[str, Any]:
        """Train the smallest model."""
        rate = run.log2_lr if run.log2_lr is not None else best_of(run.after, self.results)[1]
        tokens = float(self.design["B"]["base"]["tokens"])
        return self.trained(run, MupForCausalLM(self.config({})), rate, tokens, seed=run.seed)

    def grown(self, run: Run) -> dict[str, Any]:
        """Grow the base and train on."""
        start, rate = self.parent(run)
        growth = self.design["B"]["grow"]
        model = grow_from_pretrained(self.cooled(start), **growth, seed=run.seed, verify=False)
        tokens = float(self.design["B"]["grown"]["tokens"])
        seed = run.seed + ANOTHER_ORDER
        return {"starts_from": start, **self.trained(run, model, rate + float(run.octave or 0.0), tokens, seed=seed)}

    def heal(self, run: Run) -> dict[str, Any]:
        """Make the small model of an arm and train it on the healing tokens."""
        part, first = self.design["B"], self.design["seeds"][0]
        rates = tuple(name for name in run.after if name.startswith("B/base-lr"))
        base, rate = best_of(rates, self.results)
        octave = run.octave
        if octave is None:
            tried = tuple(name for name in run.after if name.startswith(f"B/{run.arm}-octave"))
            octave = best_of(tried, self.results)[1] - rate
        if run.seed != first:
            base = f"B/base-best-seed{run.seed}"
        large = self.cooled(f"B/grown-seed{run.seed}")
        model, cut = self.small_model(run.arm, base, large, run.seed)
        before = self.losses(model)
        steps = max(round(float(part["heal_tokens"]) / self.per_step), 2)
        distils = run.arm in ("shrunk", "undone", "scratch-distilled")
        more: dict[str, Any] = {"make": HealingTrainer, "teacher": large} if distils else {}
        folder = self.stage(run, model, "heal", steps, rate + octave, [steps], schedule=self.healing(steps), **more)
        after = {"select": math.nan}
        if folder is not None:
            after = self.losses(MupForCausalLM.from_pretrained(run_checkpoints(folder)[-1]))
        return {
            "log2_lr": rate + octave,
            "starts_from": base,
            "parameters": model.num_parameters(),
            "cut": cut,
            "before": before,
            "large": self.losses(large),
            **after,
        }

    def small_model(
        self, arm: str, base: str, large: PreTrainedModel, seed: int
    ) -> tuple[PreTrainedModel, dict[str, Any] | None]:
        """Return the model that an arm trains, and how it was cut."""
        if arm.startswith("scratch"):
            return MupForCausalLM(self.config({})), None
        if arm == "trained-on":
            return self.cooled(base), None
        if arm == "undone":
            return shrink_from_pretrained(large, verify=False), None
        search = self.design["B"]["budget_search"]
        rows = load_packed(self.rows.train).select(range(search["calibration_rows"]))
        small = shrink_to_budget(
            large,
            parameters=MupForCausalLM(self.config({})).num_parameters(),
            calibration=torch.stack([torch.as_tensor(row["input_ids"]).long() for row in rows]),
            documents=self.texts[::2],  # the selecting half of all
            tokenizer=self.tokenizer,
            n_trials=search["n_trials"],
            seed=seed,
            max_length=self.design["sequence_length"],
            verify=False,
        )
        return small, vars(small)["budget_search"]["winner"]

    def healing(self, steps: int) -> Schedule:
        """Return the schedule of a healing: the warmup and the cooldown of the regime in one stage."""
        cooldown = self.regime.cooldown(steps)
        warmup = min(self.regime.warmup(steps), steps - cooldown)
        return Schedule("wsd", warmup=warmup, cooldown=cooldown, cooldown_shape="linear")

    # ---- What all share ----

    def config(self, sizes: dict[str, int]) -> MupConfig:
        """Return the config of a model; the smallest is its muP base."""
        shape = self.design["model"]
        widths = (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        )
        return MupConfig(**{**shape, **sizes}, mup={f"base_{name}": shape[name] for name in widths})

    def trained(self, run: Run, model: PreTrainedModel, log2_lr: float, tokens: float, *, seed: int) -> dict[str, Any]:
        """Train a trunk with one cooldown and return its losses."""
        steps = max(round(tokens / self.per_step), 2)
        record = train_with_cooldowns(
            model,
            lr=2.0**log2_lr,
            budgets=[steps],
            rows=self.rows,
            seed=seed,
            regime=self.regime,
            work=self.work / "models" / run.name,
        )
        ended = math.isfinite(record["cooled"][-1]["validation_loss"])
        losses = self.losses(self.cooled(run.name)) if ended else {"select": math.nan}
        return {"log2_lr": log2_lr, "parameters": model.num_parameters(), "steps": steps, **losses, **record}

    def stage(
        self,
        run: Run,
        model: PreTrainedModel,
        name: str,
        steps: int,
        log2_lr: float,
        keep: list[int],
        *,
        schedule: Schedule | None = None,
        make: type[ContinualTrainer] = ContinualTrainer,
        **more: Any,
    ) -> Path | None:
        """Train one stage and return its folder; `None` if it diverged."""
        seed, folder = run.seed + ANOTHER_ORDER, self.work / "models" / run.name
        mixture = ReplayMixture({"train": load_packed(self.rows.train)}, {"train": 1.0}, seed=seed)
        stage = Stage(name, schedule or Schedule("constant", warmup=min(10, steps)), mixture, max_steps=steps)
        try:
            trainer = train_stage(
                model, stage, 2.0**log2_lr, self.rows, seed, self.regime, folder, keep, make=make, **more
            )
        except Diverged:
            return None
        print(run.name, curve_of(trainer)[-1], flush=True)
        return folder

    def parent(self, run: Run) -> tuple[str, float]:
        """Return the run whose cooled model a run starts from, and its rate."""
        rates = tuple(name for name in run.after if "-lr" in name)
        name, rate = best_of(rates, self.results)
        own = [other for other in run.after if "-best-" in other]
        return (own[0] if own else name), rate

    def cooled(self, name: str) -> PreTrainedModel:
        """Return the cooled model of a run."""
        branch = next((self.work / "models" / name).glob("cooled-*"))
        model: PreTrainedModel = MupForCausalLM.from_pretrained(run_checkpoints(branch)[-1])
        return model

    def losses(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the losses on the selecting and on the judging documents, nats per token."""

        def mean(held_out: EvaluationSet) -> float:
            try:
                scores: DocumentNLL = held_out.nll(model)
            except NonFiniteLossError:
                return math.nan
            return scores.mean

        return {"select": mean(self.select), "judge": mean(self.judge)}


def shrink_budgets(design: dict[str, Any]) -> None:
    """Cut every budget to almost nothing."""
    design["seeds"] = design["seeds"][:2]
    sizes = dict(list(design["A"]["sizes"].items())[::2])
    design["A"] |= {"tokens_of_the_smallest": 5e4, "log2_lrs": [-8], "sizes": sizes}
    design["A"]["prune"] |= {"share_of_flops": 1.0, "octaves": [-1]}
    design["B"]["base"] |= {"tokens": 4e4, "log2_lrs": [-8]}
    design["B"]["grown"]["tokens"] = 2e4
    design["B"] |= {"heal_tokens": 2e4, "octaves": [-0.5]}
    design["B"]["budget_search"] |= {"n_trials": 3, "calibration_rows": 2}
    design["regime"] |= {
        "warmup_steps": 2,
        "evaluate_every": 4,
        "save_every": 3,
        "curve_rows": 2,
        "evaluation_rows": 2,
    }
    design["documents"] = {"count": 8, "characters": 300}


if __name__ == "__main__":
    main()
