"""A second device for PyTorch on a machine that has one: `"other:0"`, on which the CPU computes.

Its tensors are of a device type of their own, for autograd too, and like those of two GPUs they
don't mix with others: an operation on tensors of both is an error, even of a scalar.
"""

from typing import Any

import torch
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "other:0"


class _Module(backend_registration._DummyBackendModule):
    """What PyTorch asks a device type for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Returns the dtypes of half precision."""
        return [torch.float16, torch.bfloat16]


class OtherTensor(torch.Tensor):
    """A tensor on the other device, around one on the CPU."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "OtherTensor":
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME),
        )
        wrapper.raw = raw
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _run(function, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """Makes PyTorch know the device until the block ends."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _run(function, args, kwargs or {})


def _is_other(device: Any) -> bool:
    return device is not None and torch.device(device).type == "other"


def _unwrap(leaf: Any) -> Any:
    return leaf.raw if isinstance(leaf, OtherTensor) else leaf


def _check_one_device(function: Any, tensors: list[torch.Tensor]) -> bool:
    """Returns whether tensors are all on the other device; some and others are not is an error."""
    kinds = {isinstance(tensor, OtherTensor) for tensor in tensors}
    if len(kinds) > 1:
        descriptions = [(str(tensor.device), tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(
            f"{function}: expected all tensors on the same device, found {descriptions}"
        )
    return True in kinds


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function.name().split(".")[0]
    raw_args, raw_kwargs = _pytree.tree_map(_unwrap, (args, kwargs))
    if name.startswith("aten::_foreach_"):  # Each of the lists' places by itself.
        lists = [argument for argument in args if isinstance(argument, list | tuple)]
        alone = [argument for argument in args if isinstance(argument, torch.Tensor)]
        are_other = [
            _check_one_device(function, [*row, *alone]) for row in zip(*lists, strict=True)
        ]
        outputs = function(*raw_args, **raw_kwargs)
        return outputs and [
            OtherTensor(output) if is_other else output
            for output, is_other in zip(outputs, are_other, strict=True)
        ]
    is_copy = name in ("aten::_to_copy", "aten::copy_")
    tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
    is_other = not is_copy and _check_one_device(function, tensors)
    if is_copy:
        is_other = isinstance(args[0], OtherTensor)
    if kwargs.get("device") is not None:
        is_other = _is_other(kwargs["device"])
        raw_kwargs["device"] = torch.device("cpu")
    outputs = function(*raw_args, **raw_kwargs)
    if name.endswith("_"):
        return args[0]
    if not is_other:
        return outputs
    return _pytree.tree_map(
        lambda leaf: OtherTensor(leaf) if torch.is_tensor(leaf) else leaf, outputs
    )


def register() -> None:
    """Registers the device type, for all of the process."""
    backend_registration._setup_privateuseone_for_python_backend("other", _Module())
    as_tensor, generator = torch.as_tensor, torch.Generator

    def make(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        if not _is_other(device):
            return as_tensor(data, dtype=dtype, device=device)
        source = data.device if torch.is_tensor(data) else "cpu"
        return as_tensor(data, dtype=dtype, device=source).to(device)

    torch.as_tensor = make  # It makes tensors of numbers without asking anyone.
    torch.Generator = lambda device="cpu": generator("cpu" if _is_other(device) else device)
