"""What does a trial's merge step cost, against a bare weighted sum and against mergekit 0.1.5?

    python recipes/reproduce/merging/mergekit_cost.py --python MERGEKIT/bin/python --models SMOLLM2

Three checkpoints in float32, one thread, CPU seconds. Each round measures in turn: the merge step of a trial (files
mapped into memory, into a live model), the bare in-place sum of the same tensors, all resident, and the merge that
mergekit makes of resident state dicts. Then `mergekit-yaml`, with the CPU time of its imports apart.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_warmscale.checkpoints import open_checkpoint
from hf_warmscale.merging import CheckpointCombiner
from hf_warmscale.report import markdown_table
from hf_warmscale.studies import write_result

HERE = Path(__file__).parent
WEIGHTS = (0.2, 0.3, 0.5)
ROUNDS = 9
YAML_ROUNDS = 3
MEGABYTE = 2**20


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="of the environment that has mergekit")
    parser.add_argument("--models", type=Path, required=True, help="the folder that smollm2.py wrote")
    parser.add_argument("--memory", action="store_true", help="only the memory of a process that does merge steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = sorted(arguments.models.glob("copy-*"))
    if arguments.memory:
        print(json.dumps(measure_memory(folders)))
        return
    cost = {**compare_steps(arguments.python, folders), "mergekit-yaml": measure_yaml(arguments.python, folders)}
    command = [sys.executable, __file__, *sys.argv[1:], "--memory"]
    memory = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    print(f"Peak anonymous memory: {memory['peak']:.0f} MB of {memory['bound']:.0f} MB ({memory['bound is']})")
    write_result(HERE / "results" / "mergekit" / "cost.json", {**cost, "memory": memory}, code=HERE)


def compare_steps(python: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """Measure the three in turn."""
    model, combiner = open_all(folders)
    combiner.combine(WEIGHTS)  # the files are read once, as at the start of a search
    resident = [[tensor.clone() for tensor in each] for each in stored(model, folders)]
    out = [torch.empty_like(tensor) for tensor in resident[0]]
    files = [str(folder / "model.safetensors") for folder in folders]
    command = [python, HERE / "mergekit_reference.py", "cost", *files]
    rows = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as theirs:
        assert theirs.stdin is not None and theirs.stdout is not None
        theirs.stdout.readline()
        before = written()
        wrote = 0
        for _ in range(ROUNDS):
            before = written()
            ours = cpu(lambda: combiner.combine(WEIGHTS))
            wrote += written() - before
            bare = cpu(lambda: bare_sum(out, resident))
            theirs.stdin.write("\n")
            theirs.stdin.flush()
            mergekit = float(theirs.stdout.readline())
            rows.append({"merge step": ours, "bare sum": bare, "mergekit in process": mergekit})
        print(f"Bytes written in {ROUNDS} merge steps: {wrote}\n")
        theirs.stdin.close()
    for row in rows:
        row |= {
            "step / bare": row["merge step"] / row["bare sum"],
            "step / mergekit": row["merge step"] / row["mergekit in process"],
        }
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    numbered = [{"round": str(index + 1), **row} for index, row in enumerate(rows)]
    print(markdown_table([*numbered, {"round": "median", **median}]))
    return {"rounds": rows, "median": median, "bytes written": wrote}


def open_all(folders: Sequence[Path]) -> tuple[PreTrainedModel, CheckpointCombiner]:
    """Open the checkpoints and a live model, as a search does."""
    model = AutoModelForCausalLM.from_pretrained(folders[-1])
    return model, CheckpointCombiner(model, [open_checkpoint(folder) for folder in folders])


def stored(model: PreTrainedModel, folders: Sequence[Path]) -> list[list[Tensor]]:
    """Return the tensors of every checkpoint."""
    return [[tensor for _, tensor in open_checkpoint(folder).tensors()] for folder in folders]


@torch.no_grad()
def bare_sum(out: Sequence[Tensor], resident: Sequence[Sequence[Tensor]]) -> None:
    """Do the least that a weighted sum of resident tensors can be in torch."""
    for target, *sources in zip(out, *resident, strict=True):
        torch.mul(sources[0], WEIGHTS[0], out=target)
        for source, weight in zip(sources[1:], WEIGHTS[1:], strict=True):
            target.add_(source, alpha=weight)


def measure_yaml(python: Path, folders: Sequence[Path]) -> list[dict[str, float]]:
    """Measure the command of mergekit, and its imports alone."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        config = Path(work) / "merge.yaml"
        models = "".join(
            f"  - model: {f}\n    parameters: {{weight: {w}}}\n" for f, w in zip(folders, WEIGHTS, strict=True)
        )
        config.write_text(f"merge_method: linear\ndtype: float32\nmodels:\n{models}")
        for index in range(YAML_ROUNDS):
            command = [python.parent / "mergekit-yaml", config, Path(work) / f"out-{index}", "--quiet"]
            whole = children_cpu(command)
            imports = children_cpu([python, "-c", "import mergekit.scripts.run_yaml"])
            size = sum(file.stat().st_size for file in (Path(work) / f"out-{index}").iterdir())
            rows.append({"whole": whole, "imports": imports, "without imports": whole - imports, "bytes": size})
    print(markdown_table([{"mergekit-yaml": str(index + 1), **row} for index, row in enumerate(rows)]))
    return rows


def measure_memory(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the peak of anonymous memory over five merge steps, and the bound, in MB."""
    model, combiner = open_all(folders)
    peak, done = anonymous(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(5):
        combiner.combine(WEIGHTS)
    done.set()
    watcher.join()
    sizes = [parameter.nbytes for parameter in model.parameters()]
    bound = sum(sizes) / MEGABYTE + 2 * max(sizes) / MEGABYTE + 300
    return {"peak": peak, "bound": bound, "bound is": "1 model + 2 x the largest tensor + 300"}


def cpu(run: Callable[[], None]) -> float:
    """Return the CPU seconds of a call in this process."""
    started = time.process_time()
    run()
    return time.process_time() - started


def children_cpu(command: Sequence[str | Path]) -> float:
    """Return the CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def written() -> int:
    """Return the bytes that this process has passed to write calls."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def anonymous() -> float:
    """Return the anonymous memory of this process, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
