"""Scoring on a device without float64 gives the numbers of the CPU."""

import numpy as np
import pytest
import torch

from hf_warmscale.evaluation import document_nll, sum_dtype, token_nll
from tests.evaluation.tiny import tiny_documents, tiny_llama, tiny_tokenizer
from tests.fake_device import DEVICE, DeviceWithoutFloat64


def test_the_device_refuses_float64() -> None:
    """So that the other tests say something."""
    with DeviceWithoutFloat64():
        single = torch.ones(2, device=DEVICE)
        assert single.device == DEVICE and single.cpu().double().tolist() == [1.0, 1.0]
        with pytest.raises(TypeError, match="has no float64"):
            torch.zeros(2, dtype=torch.float64, device=DEVICE)
        with pytest.raises(TypeError, match="has no float64"):
            single.double()
        with pytest.raises(RuntimeError, match="on the same device"):
            single + torch.ones(2)


def test_documents_are_scored() -> None:
    model, documents = tiny_llama(), tiny_documents()
    expected = document_nll(model, documents, tiny_tokenizer())
    with DeviceWithoutFloat64():
        scores = document_nll(model.to(DEVICE), documents, tiny_tokenizer())  # type: ignore[arg-type]
    np.testing.assert_allclose(scores.nll, expected.nll, rtol=1e-6)


def test_losses_stay_on_the_device_in_float32() -> None:
    with DeviceWithoutFloat64():
        nll = token_nll(torch.ones(3, 5, device=DEVICE), torch.zeros(3, dtype=torch.long, device=DEVICE))
        assert (nll.device, nll.dtype) == (DEVICE, torch.float32)
    assert (sum_dtype(DEVICE), sum_dtype(torch.device("cpu"))) == (torch.float32, torch.float64)
