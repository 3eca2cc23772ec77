"""Fixtures that all tests share. Nothing here needs a network."""

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process that a test starts would compile the package anew

import pytest
import torch
from torch import nn

CORPORA_VARIABLE = "WARMSCALE_CORPORA"


SHARED = ("trajectory", "finished", "first_stage", "trunk", "large", "stand_in", "inputs", "folder", "models")
"""Fixtures that take seconds to make: with xdist, the tests of a file that share one run on one worker."""


def pytest_collection_finish() -> None:
    """Keep what is imported out of garbage collection: every training collects, and would look through all of it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests by the slow fixture that they share, so that it is made once and not once on each worker.

    Long tests that are in no group come first: at the end, one worker would wait for the other.
    """
    for item in items:
        shared = set(SHARED) & set(getattr(item, "fixturenames", ()))
        if shared and item.get_closest_marker("xdist_group") is None:
            group = "trajectory" if "trajectory" in shared else item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(group))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not _is_long(item))


def _is_long(item: pytest.Item) -> bool:
    """Notebooks, what is marked as slow, and the type check."""
    if item.get_closest_marker("xdist_group") is not None:
        return False
    return item.path.suffix == ".ipynb" or item.get_closest_marker("slow") is not None or "[types]" in item.name


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def extensions_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Build DeepSpeed's op in a folder of this run: a killed build leaves a lock that torch waits for without end."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "torch_extensions"))


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of the three real text domains, `<domain>.{train,validation}.jsonl.gz`."""
    folder = os.environ.get(CORPORA_VARIABLE)
    if not folder:
        pytest.skip(f"{CORPORA_VARIABLE} does not name the folder of the real text corpora")
    return Path(folder)


@pytest.fixture
def float64_norms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute norms and softmax in the model's own dtype: transformers goes through float32, which costs 5e-7."""
    true_to = torch.Tensor.to

    def to(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if tensor.dtype == torch.float64 and args == (torch.float32,):
            return tensor
        return true_to(tensor, *args, **kwargs)  # type: ignore[call-overload, no-any-return]

    true_float = torch.Tensor.float

    def to_float(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else true_float(tensor)

    true_softmax = nn.functional.softmax

    def softmax(input: torch.Tensor, dim: int | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        return true_softmax(input, dim=dim, dtype=None if input.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "float", to_float)
    monkeypatch.setattr(nn.functional, "softmax", softmax)
    yield


def perturb(model: nn.Module, *, std: float = 0.1, seed: int = 0) -> nn.Module:
    """Add N(0, std) to every parameter: a fresh init hides gains of 1 and biases of 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter.dtype))
    return model
