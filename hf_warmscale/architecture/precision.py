"""Arithmetic that stays in float64, for proofs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class StayInFloat64(TorchDispatchMode):
    """Cast to float64 wherever float64 or integers would be cast to float32, while active.

    transformers' norms, softmaxes and rotary embeddings compute in float32 whatever the model's dtype, which costs
    5e-7 on the logits; with this mode a float64 model computes in float64 throughout.

    Example:

    ```python
    >>> import torch
    >>> from hf_warmscale.architecture import StayInFloat64
    >>> with StayInFloat64():
    ...     torch.ones(1, dtype=torch.float64).float().dtype
    torch.float64
    ```
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and _is_downcast(args[0], kwargs.get("dtype")):
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def _is_downcast(tensor: torch.Tensor, dtype: torch.dtype | None) -> bool:
    # Positions are integers; transformers before 5.18 multiplies them as matrices, which mixes no dtypes.
    return dtype == torch.float32 and (tensor.dtype == torch.float64 or not tensor.is_floating_point())
