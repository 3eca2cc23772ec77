"""Two real processes: the groups, their settings and the losses of the plain model, also where shapes are hidden."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_warmscale.mup import mup_param_groups
from tests.mup.group_worker import STEPS, main
from tests.mup.tiny import ROW, described_groups, tiny_llama_config, tiny_mup
from tests.processes import launch

ENGINES = {"ddp": "ddp", "zero2": "zero-2", "zero3": "zero-3", "fsdp2": "fsdp2"}


@pytest.mark.distributed
@pytest.mark.parametrize("modes", ["ddp,fsdp2", "zero2,zero3"])
def test_groups_and_losses_are_those_of_the_plain_model(modes: str, tmp_path: Path) -> None:
    if modes.startswith("zero"):
        pytest.importorskip("deepspeed")
    model = tiny_mup(num_hidden_layers=3)
    model.save_pretrained(tmp_path / "model")
    llama = LlamaForCausalLM(tiny_llama_config(64, 3))
    llama.save_pretrained(tmp_path / "model-llama")
    assert launch(main, modes, str(tmp_path / "model"), str(tmp_path)) == [0, 0]
    expected = described_groups(model, {id(parameter): name for name, parameter in model.named_parameters()})
    others = {id(parameter): name for name, parameter in llama.named_parameters()}
    expected_of_llama = described_groups(llama, others, base_config=tiny_llama_config(16, 2))
    losses = plain_losses(model)
    for mode in modes.split(","):
        for rank in range(2):
            seen = json.loads((tmp_path / f"{mode}-{rank}.json").read_text())
            assert (seen["engine"], seen["world"]) == (ENGINES[mode], 2)
            assert seen["hidden_shapes"] == (mode == "zero3")
            assert seen["groups"] == expected
            assert seen["other"] == expected_of_llama
            assert seen["running"] == [[group["lr"], group["weight_decay"], group["eps"]] for group in expected]
            if seen["losses"] or rank == 0:  # Trainer logs on the first rank
                assert seen["losses"] == pytest.approx(losses, abs=1e-4)


def plain_losses(model: torch.nn.Module) -> list[float]:
    optimizer = torch.optim.AdamW(mup_param_groups(model, lr=1e-2, weight_decay=0.1, eps=1e-8))
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ROW[None], labels=ROW[None]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses
