"""What is left of muP after a model was saved and loaded again: the package `mup` beside this one.

    pip install --no-deps mup==1.0.0 seaborn
    python recipes/reproduce/peers/mup_reload.py

`mup` keeps the infinite-width shape of a tensor as its attribute; `MupForCausalLM` keeps the base shape in
the config, and the groups are built from names.
"""

import copy
import tempfile
from pathlib import Path

import torch
from mup import MuAdamW, MuReadout, set_base_shapes
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_warmscale import MupConfig, MupForCausalLM, mup_param_groups
from hf_warmscale.studies import write_result

HERE = Path(__file__).parent

SIZES = {"vocab_size": 256, "num_hidden_layers": 2, "head_dim": 16}


def llama(width: int) -> LlamaForCausalLM:
    """Return a Llama of a width, untied and with the readout that `mup` asks for."""
    heads = {"num_attention_heads": width // 16, "num_key_value_heads": width // 16}
    widths = {"hidden_size": width, "intermediate_size": 4 * width, **heads}
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **widths, tie_word_embeddings=False))
    model.lm_head = MuReadout(width, SIZES["vocab_size"], bias=False)
    return model


def with_shapes(model: LlamaForCausalLM) -> str:
    """Return how many parameters know their shape at infinite width, and whether the optimizer still works."""
    parameters = list(model.parameters())
    known = sum(hasattr(parameter, "infshape") for parameter in parameters)
    try:
        MuAdamW(parameters, lr=1e-3)
    except Exception as error:  # whatever it raises is the finding
        return f"{known} of {len(parameters)}; MuAdamW: {type(error).__name__}; readout {type(model.lm_head).__name__}"
    return f"{known} of {len(parameters)}; MuAdamW works; readout {type(model.lm_head).__name__}"


def mup_after() -> dict[str, str]:
    """Return what `mup` knows after each way of passing a model on."""
    model = set_base_shapes(llama(64), llama(32), delta=llama(48), rescale_params=False)
    found = {"as made": with_shapes(model), "deepcopy": with_shapes(copy.deepcopy(model))}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found["save_pretrained, from_pretrained"] = with_shapes(AutoModelForCausalLM.from_pretrained(folder))
        torch.save(model.state_dict(), f"{folder}/state.pt")
        again = llama(64)
        again.load_state_dict(torch.load(f"{folder}/state.pt", weights_only=True), assign=True)
        found["state_dict, load_state_dict"] = with_shapes(again)
    return found


def ours_after() -> dict[str, bool]:
    """Return whether the parameter groups are the same after each of them."""
    widths = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = MupForCausalLM(MupConfig(**SIZES, **widths, mup={"base_hidden_size": 32}))

    def groups(each: nn.Module) -> list[tuple[float, float, float, int]]:
        made = mup_param_groups(each, lr=1e-3, weight_decay=0.1, eps=1e-8)
        return [(group["lr"], group["weight_decay"], group["eps"], len(group["params"])) for group in made]

    expected = groups(model)
    found = {"deepcopy": groups(copy.deepcopy(model)) == expected}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found["save_pretrained, from_pretrained"] = groups(MupForCausalLM.from_pretrained(folder)) == expected
        again = MupForCausalLM(model.config)
        again.load_state_dict(model.state_dict(), assign=True)
        found["state_dict, load_state_dict"] = groups(again) == expected
    return found


if __name__ == "__main__":
    found, kept = mup_after(), ours_after()
    write_result(HERE / "results" / "mup_reload.json", {"mup": found, "hf_warmscale, same groups": kept}, code=HERE)
    for way, answer in found.items():
        print(f"mup, {way}: {answer}")
    for way, same in kept.items():
        print(f"hf_warmscale, {way}: groups {'the same' if same else 'differ'}")
