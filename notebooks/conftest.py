"""Give the notebooks about SmolLM2 the model, with the first of its blocks: there is no network at test time."""

import os
import tempfile

import pytest

from tests.smollm2 import save_smollm2

VARIABLE = "WARMSCALE_SMOLLM2"
WITH_SMOLLM2 = ("02_grow_smollm2", "07_two_sizes", "08_compress")
BLOCKS = 8  # of 30: the embedding, the tokenizer and every kind of weight are there, in a third of the time


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Name the folder of the model to the kernel, which inherits the environment."""
    if item.path.stem in WITH_SMOLLM2 and VARIABLE not in os.environ:
        os.environ[VARIABLE] = str(save_smollm2(tempfile.mkdtemp(), blocks=BLOCKS))
