"""A pretended accelerator without float64, like Apple GPUs: it computes on the CPU and refuses what they refuse."""

# mypy: disable-error-code="no-untyped-call, override, attr-defined, misc, assignment"
# The hooks of tensor subclasses are not typed in torch.

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps:0")
"""The device that tensors claim to be on; the machine needs none."""

MIXED = {"aten.copy_.default", "aten._to_copy.default", "aten.index.Tensor", "aten.index_put_.default"}
"""Operations in which real devices accept tensors of the CPU, as a source or as indices."""


class DeviceTensor(Tensor):
    """A tensor that claims to be on the device. Its numbers are in `inner`; to torch's core it is on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("This device has no float64.")
        wrapper: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            requires_grad=inner.requires_grad,
        )
        wrapper.inner = inner
        return wrapper

    @property
    def device(self) -> torch.device:
        return DEVICE

    def __repr__(self, **_: object) -> str:
        return f"DeviceTensor({self.inner!r})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.cpu:
            return _leave(args[0], None)
        if func is Tensor.to and isinstance(args[0], DeviceTensor):
            other = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else kwargs.get("other")
            device, dtype = (
                (other.device, other.dtype) if other is not None else torch._C._nn._parse_to(*args[1:], **kwargs)[:2]
            )
            if device is not None and device.type == "cpu":
                return _leave(args[0], dtype)
            return super().__torch_function__(Tensor.to, types, (args[0], dtype or args[0].dtype), {})
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class Literals(TorchFunctionMode):
    """Makes tensors of Python values, which no dispatch mode sees, on the CPU and moves them."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        if func is torch.tensor and wanted is not None and torch.device(wanted).type == DEVICE.type:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


class DeviceWithoutFloat64(TorchDispatchMode):
    """Inside the block tensors can be made on, and moved to, `DEVICE`."""

    def __init__(self) -> None:
        super().__init__()

    def __enter__(self) -> "DeviceWithoutFloat64":
        self._swapped = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # in place, so that tied weights stay tied
        super().__enter__()
        self._literals = Literals()
        self._literals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._literals.__exit__(*error)
        super().__exit__(*error)
        torch.__future__.set_swap_module_params_on_conversion(self._swapped)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute on the CPU. The result is on the device if an argument is, or if it is asked for there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    here = any(not isinstance(tensor, DeviceTensor) and tensor.dim() > 0 for tensor in tensors)
    if there and here and str(func) not in MIXED:
        raise RuntimeError(f"Expected all tensors to be on the same device, but some of {func} are on the CPU.")
    wanted = kwargs.get("device")
    on_device = there if wanted is None else torch.device(wanted).type == DEVICE.type
    inner = dict(tree_map(_unwrap, kwargs))
    if wanted is not None and on_device:
        inner["device"] = torch.device("cpu")
    result = func(*tree_map(_unwrap, args), **inner)
    if func._schema.is_mutable and isinstance(result, Tensor):
        return args[0]  # in place: the same object comes back
    return tree_map(_wrap, result) if on_device else result


def _leave(tensor: DeviceTensor, dtype: torch.dtype | None) -> Tensor:
    inner: Callable[..., Tensor] = tensor.inner.detach().clone
    return inner() if dtype is None else inner().to(dtype)


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


def _wrap(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, Tensor) else value
