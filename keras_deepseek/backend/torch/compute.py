"""Operations on tensors, loops and values of variables on PyTorch."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend import current
from keras_deepseek.backend.data.array_pieces import cut_pieces
from keras_deepseek.backend.keras_private.layers import infers_shapes
from keras_deepseek.backend.keras_private.variables import keras_torch_device, raw_value
from keras_deepseek.backend.protocols.compute import Compute

_DTYPES = {
    *map(np.dtype, ("bool", "uint8", "int8", "int16", "int32", "int64")),
    *map(np.dtype, ("float16", "float32", "float64")),
}
"""The dtypes that PyTorch and NumPy have in common."""


class TorchCompute(Compute):
    """Implements `Compute` by PyTorch."""

    def outside_compilation(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = _disable_current_modes()
        return context

    def count_flops(self, function: Callable[..., Any], *args: Any) -> int:
        # PyTorch's counter lacks only the CPU kernel of attention.
        counters = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention}  # noqa: SLF001
        with FlopCounterMode(display=False, custom_mapping=counters) as counter, torch.no_grad():
            function(*args)
        return int(counter.get_total_flops())

    def compute_gradients(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Array],
        variables: Sequence[keras.Variable],
    ) -> tuple[list[Array], list[Array]]:
        tensors = [
            keras.ops.convert_to_tensor(array).detach().clone().requires_grad_() for array in inputs
        ]
        sources = [*tensors, *(variable.value for variable in variables)]
        result = function(*tensors)
        if result.requires_grad:
            gradients = torch.autograd.grad(
                result, sources, allow_unused=True, materialize_grads=True
            )
        else:  # The result depends on no source.
            gradients = tuple(torch.zeros_like(source) for source in sources)
        arrays = [keras.ops.convert_to_numpy(gradient) for gradient in gradients]
        return arrays[: len(tensors)], arrays[len(tensors) :]

    def apply_with_gradient(
        self,
        function: Callable[..., Any],
        gradient: Callable[..., Sequence[Any]],
        tensors: Sequence[Any],
        constants: Sequence[Any],
    ) -> Any:
        if not torch.is_grad_enabled():
            return function(*tensors, *constants)
        return _GivenGradient.apply(function, gradient, len(constants), *tensors, *constants)

    def compile_function(
        self,
        function: Callable[..., Sequence[Any]],
        variables: Sequence[keras.Variable],
        *,
        uses_xla: bool,
        has_gradients: bool,
    ) -> Callable[..., Sequence[Any]]:
        compiled = torch.compile(function) if uses_xla else function

        def run(*tensors: torch.Tensor) -> Sequence[Any]:
            with torch.set_grad_enabled(has_gradients):
                return compiled(*tensors)

        return run

    def multiply_int8(self, rows: Any, kernel: Any) -> Any:
        is_plain = type(rows) is torch.Tensor and rows.device.type == "cpu"
        is_exported = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_plain and not is_exported and _has_exact_int8_product():
            return torch._int_mm(rows, kernel)  # noqa: SLF001
        return keras.ops.matmul(rows, kernel)

    def top_k(self, values: Any, k: int) -> tuple[Any, Any]:
        indices = _choose(values.detach(), k)
        return torch.gather(values, -1, indices), indices.to(torch.int32)

    def fuses_attention(self, query: Any) -> bool:
        # It takes keys and values of one size only. On a CPU the padding costs more than it gains.
        dtype = keras.backend.standardize_dtype(query.dtype)
        return _device_type(query) != "cpu" or dtype != "float32"

    def has_attention_kernel(self) -> bool:
        return True

    def query_block_size(self, query: Any) -> int:
        return 128 if _device_type(query) == "cpu" else 256

    def read_integer(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return int(value)
        is_traced = value.is_meta or torch.compiler.is_compiling() or infers_shapes()
        is_traced = is_traced or IS_RECORDED.get()
        return None if is_traced else int(value)

    def read_array(self, value: Any) -> Array | None:
        is_here = self.can_read_shapes(value) and value.device.type == "cpu" and not infers_shapes()
        return value.detach().numpy() if is_here else None

    def can_read_shapes(self, value: Any) -> bool:
        return type(value) is torch.Tensor and not self.is_traced(value)

    def reads_in_place(self, index: Any) -> bool:
        return not torch.is_grad_enabled() and self.read_array(index) is not None

    def is_traced(self, value: Any) -> bool:
        is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing() or IS_RECORDED.get()
        # Subclasses are fake, functional or distributed tensors.
        is_real = type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_meta
        return is_recorded or not is_real

    def repeat(
        self,
        body: Callable[..., Sequence[Any]],
        times: Any,
        state: Sequence[Any],
        variables: Sequence[keras.Variable] = (),
    ) -> tuple[Any, ...]:
        for index in range(times):
            state = body(index, *state)
        return tuple(state)

    def stack(self, function: Callable[[Any], Any], num_results: Any, num_rows: Any) -> Any:
        number = self.read_integer(num_results)  # While it is traced, all rows are computed.
        results = [function(index) for index in range(num_rows if number is None else number)]
        padding = [torch.zeros_like(results[0])] * (num_rows - len(results))
        return torch.stack(results + padding)

    def run_if(
        self, condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
    ) -> None:
        if condition:
            function()

    def assign_array(self, variable: keras.Variable, source: Any) -> None:
        target = variable.value
        with torch.no_grad():
            for index in cut_pieces(tuple(target.shape), target.element_size()):
                target[index].copy_(_share(np.asarray(source[index])))

    def view_array(self, variable: keras.Variable, source: Array) -> bool:
        value = raw_value(variable)
        if value.device.type != "cpu" or variable.dtype != source.dtype.name:
            return False
        # A matrix product would copy a kernel with gaps at each call.
        if not (_can_share(source) and _is_dense(source)):
            return False
        with torch.inference_mode(value.is_inference()):
            value.data = _share(source)
        return True

    def is_slow_view(self, variable: keras.Variable) -> bool:
        # 1.0 to 1.4 times the time of a copy. In bfloat16 it is .8 to 1.1 times.
        value = raw_value(variable)
        return value.dtype == torch.float32 and not value.is_contiguous()

    def copy_view(self, variable: keras.Variable) -> None:
        value = raw_value(variable)
        # A recording of the step would repeat the copy.
        with _disable_current_modes(), torch.inference_mode(value.is_inference()):
            value.data = value.detach().clone(memory_format=torch.contiguous_format)

    def unset_initializer(self) -> Any:
        return _make_untouched_zeros if keras_torch_device() == "cpu" else "zeros"


@functools.cache
def _has_exact_int8_product() -> bool:
    """Returns False if `torch._int_mm` saturates: without VNNI instructions, oneDNN may."""
    with _disable_current_modes(), torch.inference_mode():
        ones = torch.ones((1, 512), dtype=torch.int8, device="cpu")
        product = torch._int_mm(ones * 127, ones.reshape(-1, 1).repeat(1, 32) * -127)  # noqa: SLF001
        return bool((product == -512 * 127**2).all())


def _count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Returns the floating-point operations of attention, from query, key and value shapes."""
    batch_size, heads, length, dim = query
    return 2 * int(batch_size * heads * length * key[2] * (dim + value[3]))


class _GivenGradient(torch.autograd.Function):
    """An autograd function of tensors and constants, with a gradient from the caller."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Any],
        gradient: Callable[..., Sequence[Any]],
        num_constants: int,
        *arguments: Any,
    ) -> Any:
        ctx.gradient, ctx.num_constants = gradient, num_constants
        ctx.save_for_backward(*arguments)
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple[Any, ...]:
        # PyTorch has a thread for each GPU, and Keras a device for each thread.
        with current().devices.on_device_of(upstream):
            gradients = ctx.gradient(upstream, *ctx.saved_tensors)
        return None, None, None, *gradients, *(None for _ in range(ctx.num_constants))


def _device_type(tensor: Any) -> str:
    """Returns the type of a tensor's device; of a `keras.KerasTensor`, of Keras's own device."""
    is_symbol = isinstance(tensor, keras.KerasTensor)
    return str(torch.device(keras_torch_device() if is_symbol else tensor.device).type)


def _choose(values: torch.Tensor, k: int) -> torch.Tensor:
    """Returns the indices of the `k` largest values, among equal values the first ones."""
    # With `torch.topk` alone, the choice among equal numbers depends on how many others there are.
    if values.dtype != torch.float32:
        return torch.sort(values, dim=-1, descending=True, stable=True)[1][..., :k]
    if not current().compute.can_read_shapes(values):
        return torch.topk(_make_keys(values), k)[1]
    largest, indices = torch.topk(values, k)
    least = largest[..., -1:]
    is_tied = (values == least).sum(-1) > (largest == least).sum(-1)
    if is_tied.any():  # Few rows have ties, and computing keys is the slowest part.
        indices[is_tied] = torch.topk(_make_keys(values[is_tied]), k)[1]
    return indices


def _make_keys(values: torch.Tensor) -> torch.Tensor:
    """Returns int64 keys that sort as `values` do, and put the first of equal values first."""
    bits = (values + 0.0).view(torch.int32)  # The sum turns negative zero into zero.
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    positions = torch.arange(values.shape[-1], device=values.device)
    return (ascending << 32) + (values.shape[-1] - positions)


def _share(piece: Array) -> torch.Tensor:
    """Returns a tensor that shares an array's memory if PyTorch can read its layout."""
    if not _can_share(piece):
        piece = piece.copy()
    if piece.dtype.name == "bfloat16":  # PyTorch knows no other package's dtypes.
        return torch.from_numpy(piece.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(piece)


def to_tensor(array: Any) -> Any:
    """Converts an array to a tensor, which shares its memory if possible."""
    if type(array) is np.ndarray and array.dtype in _DTYPES and _can_share(array):
        array = torch.from_numpy(array)
    return keras.ops.convert_to_tensor(array)


def _can_share(array: Array) -> bool:
    """Returns True if PyTorch can read the layout of an array, and may write to it."""
    flags = array.flags
    return flags.writeable and flags.aligned and min(array.strides, default=0) >= 0


def _is_dense(array: Array) -> bool:
    """Returns True if an array's numbers follow one another in memory, in some order of axes."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    return bool(array.transpose(order).flags.c_contiguous)


def _make_untouched_zeros(shape: Any, dtype: Any = None) -> torch.Tensor:
    """Returns a tensor of zeros for which the system has not provided memory yet."""
    name = keras.backend.standardize_dtype(dtype)
    stored = np.zeros(tuple(shape), "int16" if name == "bfloat16" else name)
    tensor = torch.from_numpy(stored)
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


IS_RECORDED: ContextVar[bool] = ContextVar("is_recorded", default=False)
"""True while operations are recorded, to run with other numbers: tensors can't be read then."""
