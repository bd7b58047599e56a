"""Products with the stacked kernels of experts, of floating-point numbers or quantized.

Quantized kernels are read as they are stored, and one at a time is converted to floating-point
numbers. The backward pass converts them again, so nothing of it is kept.

Shape suffixes: E experts, B blocks, R rows of a block, D rows of a kernel, F columns of a kernel, G
groups of rows that share a scale, L rank of a LoRA.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.layers.double_precision import multiply_matrices


@dataclass(frozen=True)
class KernelStack:
    """The kernels of one projection: of all experts, of some, or of one without the first axis.

    Args:
        base: Floating-point kernels (EDF). Or int8 kernels (EDF) and a scale (EF), by which they
            are divided. Or int8 kernels, a scale (EGF) and a zero point (EGF), which is subtracted
            before they are multiplied by the scale. In int4 a byte holds two columns.
        lora: The matrices A (EDL) and B (ELF) of a LoRA, or none.
        lora_factor: The factor of their product.
        num_columns: F in int4, else `None`.
    """

    base: tuple[Any, ...]
    lora: tuple[Any, ...] = ()
    lora_factor: float = 1.0
    num_columns: int | None = None

    @property
    def is_quantized(self) -> bool:
        """True if the kernels are int8 or int4."""
        return len(self.base) > 1

    @property
    def is_plain(self) -> bool:
        """True if the kernels are floating-point numbers without a LoRA."""
        return len(self.tensors) == 1

    @property
    def tensors(self) -> tuple[Any, ...]:
        """All tensors."""
        return (*self.base, *self.lora)

    def with_tensors(self, tensors: Iterable[Any]) -> Self:
        """Returns such kernels with other tensors, in the same order."""
        tensors, count = tuple(tensors), len(self.base)
        return replace(self, base=tensors[:count], lora=tensors[count:])

    def choose(self, expert: Any) -> Self:
        """Returns the kernels of one expert."""
        return self.with_tensors(tensor[expert] for tensor in self.tensors)

    def multiply(self, rows: Any) -> Any:
        """Multiplies rows (RD) by the kernel of one expert, or rows (ERD) by those of all (ERF)."""
        if self.is_quantized:
            product = backend.current().compute.apply_with_gradient(
                self._multiply, self._differentiate, [rows], self.base
            )
        else:
            product = multiply_matrices(rows, self.base[0])
        return _add_lora(product, rows, self.lora, self.lora_factor)

    def unstack(self) -> Self:
        """Returns such kernels with a list of the experts' tensors in place of each tensor.

        The gradient of a tensor that is indexed would be as large as all kernels, for each expert.
        Quantized kernels have none, and indexing few of them is faster.
        """
        base = self.base if self.is_quantized else map(ops.unstack, self.base)
        return self.with_tensors((*base, *map(ops.unstack, self.lora)))

    def multiply_by(self, expert: Any, rows: Any) -> Any:
        """Multiplies rows (RD) by the kernel of an expert (RF)."""
        kernel = self.base[0][expert]
        if self.is_plain and kernel.dtype == rows.dtype:
            return rows @ kernel  # The operator is faster, as below.
        return self.choose(expert).multiply(rows)

    def multiply_blocks(self, blocks_BRD: Any, expert_B: Any, num_used: Any) -> Any:
        """Multiplies each block by the kernel of its expert (BRF).

        Quantized kernels are multiplied one after the other, so that one is converted at a time.
        Blocks after the first `num_used` are then zeros. With an `expert_B` of `None`, block `i` is
        of expert `i`, and all are used.
        """
        if not self.is_quantized:
            return self.with_tensors(_take(self.tensors, expert_B)).multiply(blocks_BRD)
        num_blocks = ops.shape(blocks_BRD)[0]
        experts = ops.arange(num_blocks, dtype="int32") if expert_B is None else expert_B
        number = ops.convert_to_tensor(num_blocks if expert_B is None else num_used, dtype="int32")

        def loop(
            product: Callable[..., Any], blocks: Any, experts: Any, number: Any, *base: Any
        ) -> Any:
            def compute(index: Any) -> Any:
                return product(blocks[index], *(tensor[experts[index]] for tensor in base))

            return backend.current().compute.stack(compute, number, num_blocks)

        products_BRF = backend.current().compute.apply_with_gradient(
            lambda blocks, *constants: loop(self._multiply, blocks, *constants),
            lambda upstream, _, *constants: [loop(self._multiply_back, upstream, *constants)],
            [blocks_BRD],
            [experts, number, *self.base],
        )
        return _add_lora(products_BRF, blocks_BRD, _take(self.lora, expert_B), self.lora_factor)

    def merge(self) -> Any:
        """Returns floating-point kernels with the LoRA added."""
        kernel = self.base[0]
        if self.is_quantized:
            kernel = _divide(*self._convert(self.base[1].dtype, *self.base))
        if not self.lora:
            return kernel
        return kernel + ops.cast(multiply_matrices(*self.lora) * self.lora_factor, kernel.dtype)

    def _multiply(self, rows: Any, *base: Any) -> Any:
        # Operators, because a function of `keras.ops` takes longer than a small product itself.
        kernel, scale = self._convert(rows.dtype, *base)
        return _divide(rows @ kernel, scale)

    def _multiply_back(self, upstream: Any, *base: Any) -> Any:
        kernel, scale = self._convert(upstream.dtype, *base)
        return _divide(upstream, scale) @ ops.swapaxes(kernel, -1, -2)

    def _differentiate(self, upstream: Any, _: Any, *base: Any) -> list[Any]:
        return [self._multiply_back(upstream, *base)]

    def _convert(self, dtype: Any, values: Any, scale: Any, zero: Any = None) -> tuple[Any, Any]:
        """Returns kernels as floating-point numbers, and the divisor of their columns.

        The divisor is `None` if they are divided already.
        """
        if self.num_columns is not None:
            values = _unpack(values, self.num_columns)
        values = ops.cast(values, dtype)
        if zero is not None:
            return _scale_groups(values, scale, zero), None
        if keras.backend.standardize_dtype(dtype) == "float16":  # Sums of integers are too large.
            return _divide(values, scale), None
        return values, scale


def _take(tensors: Sequence[Any], expert_B: Any) -> list[Any]:
    """Returns the tensors of the experts of blocks; `None` stands for all experts in order."""
    if expert_B is None:
        return list(tensors)
    return [ops.take(tensor, expert_B, axis=0) for tensor in tensors]


def _add_lora(product: Any, rows: Any, lora: Sequence[Any], factor: float) -> Any:
    """Adds the product of rows with a LoRA to that with its kernel."""
    if not lora:
        return product
    added = multiply_matrices(multiply_matrices(rows, lora[0]), lora[1])
    return product + ops.cast(added * factor, product.dtype)


def _unpack(packed: Any, num_columns: int) -> Any:
    """Returns the columns (..., F) of int4 kernels as int8, from two in a byte.

    The first of two is in the low bits, as `keras.quantizers.pack_int4` has it.
    """
    low, high = ops.bitwise_and(packed, 15), ops.bitwise_and(ops.right_shift(packed, 4), 15)
    pairs = ops.bitwise_xor(ops.stack([low, high], axis=-1), 8) - 8
    return ops.reshape(pairs, (*ops.shape(packed)[:-1], -1))[..., :num_columns]


def _scale_groups(values: Any, scale: Any, zero: Any) -> Any:
    """Returns `(values - zero) * scale` (..., D, F); a group of rows shares a zero and a scale."""
    scale, zero = (ops.expand_dims(ops.cast(x, values.dtype), -2) for x in (scale, zero))
    shape = ops.shape(values)
    groups = ops.reshape(values, (*shape[:-2], scale.shape[-3], -1, shape[-1]))
    return ops.reshape((groups - zero) * scale, shape)


def _divide(values: Any, scale: Any) -> Any:
    """Divides each column by its scale (..., F); a scale of `None` stands for ones."""
    if scale is None:
        return values
    if scale.dtype != values.dtype:
        scale = ops.cast(scale, values.dtype)
    return values / (scale if len(scale.shape) == 1 else scale[..., None, :])
