"""How many tokens a second a model trains at on this machine: a few steps of it, live."""

import statistics
import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

STEPS, WARMUP_STEPS = 20, 3


def measure_throughput(
    config: PreTrainedConfig,
    *,
    sequence_length: int = 2048,
    batch_size: int = 1,
    steps: int = STEPS,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> float:
    """Train a fresh model for a few steps on random tokens and return its tokens per second.

    Args:
        config (`PreTrainedConfig`): of the model.
        sequence_length (`int`): tokens in a row.
        batch_size (`int`): rows in a step.
        steps (`int`): that are timed, after three that are not; their median counts.
        device (`str` or `torch.device`, *optional*): by default the accelerator, if there is one.
        dtype (`torch.dtype`, *optional*): of the weights; by default bfloat16 on an accelerator, else float32.

    Raises:
        ValueError: if a row is longer than the model's positions, or the model does not fit into memory.

    Example:

    ```python
    >>> config = AutoConfig.from_pretrained("HuggingFaceTB/SmolLM2-135M")
    >>> speed = measure_throughput(config, sequence_length=2048, batch_size=4)
    >>> plan(target=config, hours=24, tokens_per_second=speed).advice
    ```
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and sequence_length > limit:
        raise ValueError(f"The model has {limit} positions, fewer than sequence_length={sequence_length}; shorten it.")
    where = torch.device(device) if device is not None else default_device()
    kind = dtype or (torch.float32 if where.type == "cpu" else torch.bfloat16)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=kind)
        torch.nn.Module.to(model, where)
        seconds = _timed(model, (batch_size, sequence_length), config.get_text_config().vocab_size, where, steps)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"A step of {batch_size} x {sequence_length} tokens does not fit on {where}; lower batch_size, or give "
            "tokens_per_second."
        ) from error
    return batch_size * sequence_length / seconds


def default_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _timed(model: torch.nn.Module, shape: tuple[int, int], vocab: int, device: torch.device, steps: int) -> float:
    """Return the median seconds of a step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    seconds = []
    for _ in range(WARMUP_STEPS + steps):
        tokens = torch.randint(0, vocab, shape, device=device)
        begin = time.perf_counter()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type != "cpu":
            # Kernels run behind the host; without this only their launch would be timed.
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    # The first steps allocate memory and pick kernels.
    return statistics.median(seconds[WARMUP_STEPS:])
