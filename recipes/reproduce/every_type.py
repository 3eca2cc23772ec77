"""Measure something on every type of transformers' causal-LM mapping: one JSON for each type, resumable.

Each type runs in a process of its own, with a limit on its processor time and its memory: the code of a family may do
anything at sizes that it was not made for.
"""

import argparse
import multiprocessing
import resource
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_warmscale.architecture import Axis
from hf_warmscale.studies.study import read_runs, write_result

Measure = Callable[[str], Mapping[str, Any]]
"""Return the row of a model type; an error that it raises becomes the row's `failed`."""

EVERY_TYPE = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MEMORY_BYTES = 6 * 2**30
WARM_UP = "llama"

USUAL = {
    Axis.HIDDEN: 64,
    Axis.INTERMEDIATE: 96,
    Axis.HEADS: 4,
    Axis.KV_HEADS: 2,
    Axis.HEAD_DIM: 16,
    Axis.VOCAB: 128,
    Axis.EXPERTS: 4,
    Axis.EXPERT_INTERMEDIATE: 48,
    Axis.LAYERS: 2,
}
SHOWN = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "smollm3", "stablelm",
    "cohere", "opt", "gpt_neox", "gpt2", "mixtral",
)  # fmt: skip
"""Types that the tables show axis by axis."""


MISSING: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
}
"""What a default config leaves open and every published one sets."""

SMALL_SIZES = {
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "o_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
}
"""Sizes of latent attention and recurrent mixers that have no axis: with the published ones a tiny model has millions
of parameters."""


def default_config(model_type: str) -> PreTrainedConfig:
    """Return the default config of a type, with what it leaves open."""
    return CONFIG_MAPPING[model_type](**MISSING.get(model_type, {}))


def with_small_sizes(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config with `SMALL_SIZES` where it sets them and the family takes them."""
    values = config.to_dict()
    small = {name: size for name, size in SMALL_SIZES.items() if isinstance(values.get(name), int) and values[name]}
    if {"qk_rope_head_dim", "qk_nope_head_dim"} <= small.keys():  # the families compute these, but keep what is stored
        rotary, plain = small["qk_rope_head_dim"], small["qk_nope_head_dim"]
        sums = {"head_dim": rotary, "qk_head_dim": rotary + plain}
        small |= {name: size for name, size in sums.items() if isinstance(values.get(name), int)}
    try:
        return type(config).from_dict(values | small)
    except Exception:  # the family's own validators
        return config


class OutOfTimeError(BaseException):
    """One type took longer than it may; nothing between takes it for a refusal."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` when the block has used more processor time."""

    def stop(*_: object) -> None:
        raise OutOfTimeError(f"not finished within {seconds:.0f} CPU seconds")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def one_line(error: BaseException) -> str:
    """Return the message of an error for a cell of a table."""
    return " ".join(str(error).replace("|", "/").split())[:300]


def be_quiet() -> None:
    """Leave out what the types' own code warns of and logs."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def rows_of_every_type(
    description: str, folder: Path, measure: Measure, *, cpu_seconds: float
) -> list[dict[str, Any]]:
    """Parse the arguments of the script, measure the types that have no row yet, and return all rows by name.

    Args:
        description (`str`): of the script, for its `--help`.
        folder (`Path`): of the rows.
        measure (`Callable`): runs in a forked process.
        cpu_seconds (`float`): the usual limit for one type.
    """
    be_quiet()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=EVERY_TYPE, metavar="TYPE", help="these types, again")
    parser.add_argument("--seconds", type=float, default=cpu_seconds, help="the limit of processor time for one type")
    parser.add_argument("--report", action="store_true", help="only make the tables")
    parser.add_argument("--jobs", type=int, default=1, help="types measured at a time")
    arguments = parser.parse_args()
    missing = [name for name in EVERY_TYPE if not (folder / f"{name}.json").is_file()]
    wanted = [] if arguments.report else arguments.only or missing
    row_of = partial(_limited, measure=measure, cpu_seconds=arguments.seconds)
    if wanted:
        measure(WARM_UP)  # here, so that no forked process has to import what all of them need: half of their time
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=1) as processes:
        for row in tqdm(processes.imap_unordered(row_of, wanted), total=len(wanted)):
            write_result(folder / f"{row['model type']}.json", row, code=folder.parent)
    return read_runs(folder)


def _limited(name: str, measure: Measure, cpu_seconds: float) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        with cpu_limit(cpu_seconds):
            return {"model type": name, **measure(name)}
    except (Exception, OutOfTimeError, MemoryError) as error:  # whatever the family's own code raises
        return {"model type": name, "failed": f"{type(error).__name__}: {one_line(error)}"}
