"""Two processes that share the batches both get what one process gets."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_warmscale.evaluation import EvaluationSet
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer

PROGRAM = """
import json, sys, torch
from hf_warmscale.evaluation import EvaluationSet
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer
torch.distributed.init_process_group("gloo")
held_out = EvaluationSet.from_documents(tiny_documents(), tiny_tokenizer(), max_length=32, batch_tokens=40)
nll = held_out.nll(tiny_llama(), distributed=True).nll.tolist()
with open(f"{sys.argv[1]}/{torch.distributed.get_rank()}.json", "w") as file:
    json.dump(nll, file)
torch.distributed.destroy_process_group()
"""


@pytest.mark.distributed
def test_processes_share_the_batches(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment | {"RANK": str(rank)})
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    held_out = EvaluationSet.from_documents(tiny_documents(), tiny_tokenizer(), max_length=32, batch_tokens=40)
    expected = held_out.nll(tiny_llama()).nll
    for rank in range(2):
        np.testing.assert_allclose(json.loads((tmp_path / f"{rank}.json").read_text()), expected, rtol=1e-6)
