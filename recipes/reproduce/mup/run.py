"""Run the studies of `study.yaml`; what has run is stored and not repeated.

    python recipes/reproduce/mup/run.py --corpora CORPORA --cache CACHE --output RESULTS --jobs 2
    python recipes/reproduce/mup/report.py --output RESULTS

`--corpora` is a folder of `<domain>.{train,validation}.jsonl.gz` files with the domains english, german and python
(see `recipes/reproduce/corpora`); `--cache` gets the packed rows and the models to grow; `--only` names studies
(`transfer-width`, `growth`, `coordinates-depth`, ...); `--smoke` runs them with almost no budget.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from datasets import disable_progress_bars
from growth import lowest, own_base, run_growth, run_growth_control
from transformers.utils import logging

from hf_warmscale.mup import MupConfig
from hf_warmscale.tuning import ProxyTask, at_size, coordinate_check, lr_transfer, sweep
from hf_warmscale.tuning.ladder import describe_study
from hf_warmscale.tuning.transfer import train_point

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "corpora"))
from corpora import prepare_rows  # noqa: E402


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a folder for these studies alone")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    disable_progress_bars()
    study = yaml.safe_load((HERE / "study.yaml").read_text())
    if arguments.smoke:
        shrink(study)
    length = study["task"].pop("sequence_length")
    folders = prepare_rows(arguments.corpora, arguments.cache, sequence_length=length)
    study["task"] |= dict(zip(("rows", "validation"), map(str, folders), strict=True))
    for name, part in study["transfer"].items():
        if arguments.only is None or f"transfer-{name}" in arguments.only:
            run_transfer(study, part, arguments.output / f"transfer-{name}", arguments.jobs)
    if arguments.only is None or "growth" in arguments.only:
        run_growth(study, arguments.output / "growth", arguments.cache, arguments.jobs)
    if arguments.only is None or "growth-control" in arguments.only:
        run_growth_control(study, arguments.output / "growth", arguments.cache, arguments.jobs)
    for name, part in study["coordinates"]["studies"].items():
        if arguments.only is None or f"coordinates-{name}" in arguments.only:
            run_coordinates(study, part, arguments.output / f"coordinates-{name}", arguments.jobs)


def run_transfer(study: dict[str, Any], part: dict[str, Any], output: Path, jobs: int) -> None:
    """Sweep the learning rate over widths or depths under every rule."""
    base = study["model"]
    entry = {"base_hidden_size": base["hidden_size"], "base_num_hidden_layers": base["num_hidden_layers"]}
    config = MupConfig(**base, mup=entry)
    results = lr_transfer(
        at_size(config, "width", part.get("hidden_size", base["hidden_size"])),
        ProxyTask(**study["task"] | part.get("task", {})),
        axis=part["axis"],
        sizes=part["sizes"],
        lrs=[2.0**exponent for exponent in study["log2_lrs"]],
        rules=part.get("rules", study["rules"]),
        seeds=study["seeds"],
        output=output,
        jobs=jobs,
    )
    for result in results:
        print(f"{output.name} {result.rule}: the best rate drifts by {result.drift:+.2f} octaves", flush=True)


def run_coordinates(study: dict[str, Any], part: dict[str, Any], output: Path, jobs: int) -> None:
    """Check how the change of each activation scales with width or depth under every rule."""
    coordinates, task = study["coordinates"], ProxyTask(**study["task"])
    model = {**study["model"], "initializer_range": coordinates["initializer_range"]}
    zero = {"zero_init_query": True, "zero_init_readout": not part["tie_word_embeddings"]}
    tied = {**model, "tie_word_embeddings": part["tie_word_embeddings"]}
    results = coordinate_check(
        own_base(tied, coordinates["base_hidden_size"]).with_mup(**zero),
        task,
        axis=part["axis"],
        sizes=part["sizes"],
        lr=base_rate(study, own_base(model, coordinates["base_hidden_size"]), task, output.parent, jobs),
        rules=part.get("rules", study["rules"]),
        steps=coordinates["steps"],
        seeds=study["seeds"],
        output=output,
        jobs=jobs,
    )
    for result in results:
        verdict = "pass" if result.passed else f"{len(result.failures)} of {len(result.slopes)} activations fail"
        print(f"{output.name} {result.label}: {verdict}", flush=True)


def base_rate(study: dict[str, Any], base: MupConfig, task: ProxyTask, output: Path, jobs: int) -> float:
    """Return the best rate of the grid at the base of the coordinate checks, swept once for all of them."""
    curves = sweep(
        partial(train_point, task, {base.hidden_size: base}),
        sizes=[base.hidden_size],
        lrs=[2.0**exponent for exponent in study["coordinates"]["log2_lrs"]],
        seeds=study["seeds"],
        output=output / "coordinates-lr",
        study=describe_study(task.settings(), base, "width"),
        tokens=task.tokens_hash(),
        jobs=jobs,
    )
    return lowest(curves[base.hidden_size])


def shrink(study: dict[str, Any]) -> None:
    """Keep the form of the study and almost none of its cost."""
    study["task"].update(steps=4, warmup_steps=1, batch_size=2, validation_rows=2)
    study.update(log2_lrs=[-9, -8, -7], seeds=2)
    for part in study["transfer"].values():
        part["sizes"] = part["sizes"][:2]
    study["growth"].update(octaves=[-1, 0, 1])
    study["coordinates"].update(log2_lrs=[-9, -8, -7])
    for part in study["coordinates"]["studies"].values():
        part["sizes"] = part["sizes"][:2]


if __name__ == "__main__":
    main()
