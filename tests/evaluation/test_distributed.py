"""Two processes that share the batches both get what one process gets."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_warmscale.evaluation import EvaluationSet
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer
from tests.processes import launch


def share(folder: Path) -> None:
    """What one rank does."""
    torch.distributed.init_process_group("gloo")
    held_out = EvaluationSet.from_documents(tiny_documents(), tiny_tokenizer(), max_length=32, batch_tokens=40)
    nll = held_out.nll(tiny_llama(), distributed=True).nll.tolist()
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(nll))
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_processes_share_the_batches(tmp_path: Path) -> None:
    assert launch(share, tmp_path) == [0, 0]
    held_out = EvaluationSet.from_documents(tiny_documents(), tiny_tokenizer(), max_length=32, batch_tokens=40)
    expected = held_out.nll(tiny_llama()).nll
    for rank in range(2):
        np.testing.assert_allclose(json.loads((tmp_path / f"{rank}.json").read_text()), expected, rtol=1e-6)
