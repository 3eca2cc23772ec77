"""Fold Granite's four multipliers into the weights: the same function as a plain Llama, tied embeddings included.

With α_e, α_r, s and ls for `embedding_multiplier`, `residual_multiplier`, `attention_multiplier` and `logits_scaling`:

| tensor | factor |
|---|---|
| `q_proj`, weight and bias | s * sqrt(head_dim): it commutes with the rotation of RoPE |
| `o_proj`, `down_proj`, weight and bias | α_r |
| `embed_tokens` | α_e |
| `lm_head`, untied | 1 / ls |
| final norm, tied | 1 / (ls * α_e), since the tied readout has taken α_e along |

The result is exact; in floating point it is bit-identical where all factors are powers of two, and off by at most 1e-5
in float32 otherwise. In bfloat16 a factor that is not a power of two rounds every weight once.
"""

import copy

import torch
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_warmscale.mup.granite_form import FORWARD_MULTIPLIERS, head_dim


def fold_multipliers(model: GraniteForCausalLM) -> LlamaForCausalLM:
    """Return a plain Llama that computes the same logits; the model itself is not changed.

    To train the result further exactly as the model, use the factors of [`training_factors`] and do not clip by the
    global gradient norm, which a folded factor changes.

    Args:
        model (`GraniteForCausalLM`): a [`MupForCausalLM`] or any Granite.

    Raises:
        ValueError: if it is of another family, or has a shape that Llama does not allow.

    Example:

    ```python
    >>> llama = fold_multipliers(model)
    >>> llama.save_pretrained(folder)
    ```
    """
    if not isinstance(model, GraniteForCausalLM):
        raise ValueError(
            f"The model is a {type(model).__name__}, not a Granite or MupForCausalLM; merge adapters first."
        )
    config = llama_config(model.config)
    # A tied head is left out: its state entry is the embedding's tensor, and the factor of `lm_head` is not its own.
    state = {
        name: tensor.detach() * fold_factor(model.config, name)
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    llama: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=state, dtype=model.dtype
    )
    llama.generation_config = copy.deepcopy(model.generation_config)
    llama.train(model.training)
    torch.nn.Module.to(llama, model.device)
    return llama


def fold_factor(config: GraniteConfig, name: str) -> float:
    """Return the factor of one tensor of a Granite model, by its name."""
    module = name.split(".")[-2]
    if module == "q_proj":
        return _attention_factor(config)
    if module in ("o_proj", "down_proj"):
        # Only the matrices that write to the stream, not all of a branch: each branch is linear in its last matrix.
        return float(config.residual_multiplier)
    if module == "embed_tokens":
        return float(config.embedding_multiplier)
    if module == "lm_head":
        return 1 / config.logits_scaling
    if name == "model.norm.weight" and config.tie_word_embeddings:
        return 1 / (config.logits_scaling * config.embedding_multiplier)
    return 1.0


def llama_config(config: GraniteConfig) -> LlamaConfig:
    """Return the config of the folded model.

    Raises:
        ValueError: if Llama does not allow the shape.
    """
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"Llama needs a hidden size that is a multiple of the number of heads, and {config.hidden_size} is not "
            f"one of {config.num_attention_heads}; export to granite instead."
        )
    dropped = {*FORWARD_MULTIPLIERS, "mup", "model_type", "architectures", "transformers_version"}
    content = {key: value for key, value in config.to_dict().items() if key not in dropped}
    return LlamaConfig(**{**content, "head_dim": head_dim(config), "architectures": ["LlamaForCausalLM"]})


def _attention_factor(config: GraniteConfig) -> float:
    usual = float(head_dim(config) ** -0.5)
    # Not `multiplier * sqrt(head_dim)`: that is 1 up to rounding where it must be 1.
    return float(config.attention_multiplier / usual)
