"""Arithmetic that stays in float64, for proofs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NARROWER = (torch.float32, torch.bfloat16, torch.float16)
PRODUCTS = (torch.ops.aten.bmm.default, torch.ops.aten.mm.default)
"""Operations that refuse to mix dtypes. transformers before 5.18 multiplies float32 frequencies by positions so."""


class StayInFloat64(TorchDispatchMode):
    """Ignore casts from float64 to a narrower type while active.

    transformers' norms, softmaxes and rotary embeddings compute in float32 whatever the model's dtype, which costs
    5e-7 on the logits; torch's Muon orthogonalises in bfloat16. With this mode a float64 model computes in float64
    throughout.

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
        # Under dispatch `float()` and every `to(dtype)` come down to `_to_copy`.
        if func is torch.ops.aten._to_copy.default and _is_downcast(args[0], kwargs.get("dtype")):
            kwargs = {**kwargs, "dtype": torch.float64}
        if func in PRODUCTS and len({tensor.dtype for tensor in args}) > 1:
            args = tuple(tensor.double() for tensor in args)
        return func(*args, **kwargs)


def _is_downcast(tensor: torch.Tensor, dtype: torch.dtype | None) -> bool:
    return tensor.dtype == torch.float64 and dtype in NARROWER
