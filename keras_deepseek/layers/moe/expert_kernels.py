"""A layer that holds one kernel for each expert, and quantizes them."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import delete_variables
from keras_deepseek.backend.keras_private.quantization import (
    mark_quantized,
    new_weights,
    read_block_size,
)
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.initializers import stack_initializer
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.moe.kernel_stack import KernelStack


class ExpertKernels(keras.Layer):
    """The kernels of one projection of all experts, as a variable `kernel` of three axes.

    `DeepSeekMoE` has three such layers and multiplies with their `stack()`; they are not called.
    They follow the protocol of `keras.layers.Dense` for `quantize`, `enable_lora` and files. In
    int8, and in int4 with one scale for each column, the kernel of each expert is quantized as
    Keras quantizes that of a `Dense`; in int4 with blocks of rows, too. Inputs are not quantized.
    Each expert has LoRA matrices of its own.

    Args:
        kernel_shape: tuple of integers, `(num_experts, rows, columns)`.
        kernel_initializer: `keras.initializers.Initializer`. Initializer of each kernel.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.
    """

    def __init__(
        self, kernel_shape: tuple[int, int, int], kernel_initializer: Any, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_shape = kernel_shape
        self.kernel_initializer = stack_initializer(kernel_initializer, kernel_shape[0])
        self.quantization_config: Any = None
        self.kernel_scale: Any = None
        self.kernel_zero: Any = None
        self.lora_enabled = False
        self.lora_rank: Any = None
        self.lora_alpha: Any = None

    def build(self, input_shape: Shape | None = None) -> None:
        self.kernel = self.add_weight(
            name="kernel", shape=self.kernel_shape, initializer=self.kernel_initializer
        )

    def stack(self) -> KernelStack:
        """Returns the kernels as tensors; inside a layer's call in that layer's compute dtype."""
        lora = (self.lora_kernel_a, self.lora_kernel_b) if self.lora_enabled else ()
        return KernelStack(
            tuple(map(ops.convert_to_tensor, self._saved_variables)),
            tuple(map(ops.convert_to_tensor, lora)),
            self.lora_alpha / self.lora_rank if self.lora_enabled else 1.0,
            self.kernel_shape[2] if self.quantization_mode == "int4" else None,
        )

    @property
    def _saved_variables(self) -> list[Any]:
        """The variables that a file holds, in its order."""
        variables = [self.kernel, self.kernel_scale, self.kernel_zero]
        return [variable for variable in variables if variable is not None]

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """Quantizes the kernels in place.

        Args:
            mode: string. `"int8"` or `"int4"`.
            type_check: boolean. Ignored: the class has no subclasses. Defaults to `True`.
            config: `keras.quantizers.QuantizationConfig`. Its `activation_quantizer` is not used.

        Raises:
            InvalidInputError: The `block_size` of int4 does not divide the rows of a kernel.
            NotImplementedError: Another mode. `keras.Model.quantize` passes the layer by.
        """
        del type_check
        block_size = self.check_quantization(mode, config)
        kernels = ops.convert_to_numpy(self.kernel)
        values = self._quantize_each(kernels, mode, block_size, config)
        del kernels
        delete_variables(self, ["kernel"])
        self.quantization_config = config
        self.quantized_build(self.kernel_shape, mode, config)
        for variable, value in zip(self._saved_variables, values, strict=True):
            variable.assign(value)

    def check_quantization(self, mode: str, config: Any) -> int | None:
        """Returns the block size of int4 in rows, or `None`; raises an error if it doesn't fit."""
        if mode not in ("int8", "int4"):
            raise NotImplementedError(
                f"The experts of {self.path!r} can be quantized to 'int8' and 'int4'; they stay as "
                f"they are in mode {mode!r}."
            )
        block_size = read_block_size(config) if mode == "int4" else None
        rows = self.kernel_shape[1]
        if block_size is not None and rows % block_size:
            fitting = max(size for size in range(1, block_size) if rows % size == 0)
            raise InvalidInputError(
                f"int4 needs a `block_size` that divides the {rows} rows of a kernel of "
                f"{self.path!r}, received {block_size}. Quantize with config="
                f"keras.quantizers.Int4QuantizationConfig(block_size={fitting}), or with "
                "block_size=None for one scale for each column."
            )
        return block_size

    def _quantize_each(
        self, kernels: Sequence[Array], mode: str, block_size: int | None, config: Any
    ) -> list[Array]:
        """Quantizes the kernel of each expert; returns the values of the saved variables."""
        quantizer = None if config is None else config.weight_quantizer
        if quantizer is None:
            value_range = (-127, 127) if mode == "int8" else (-8, 7)
            quantizer = keras.quantizers.AbsMaxQuantizer(axis=0, value_range=value_range)
        parts = []
        for kernel in kernels:
            rounded = np.asarray(kernel, self._scale_dtype)
            if block_size is None:
                values, scale = quantizer(rounded, to_numpy=True)
                quantized = [values, ops.squeeze(scale, axis=0)]
            else:
                quantized = keras.quantizers.abs_max_quantize_grouped_with_zero_point(
                    rounded, block_size=block_size, to_numpy=True
                )
            if mode == "int4":
                quantized = [keras.quantizers.pack_int4(quantized[0], axis=-1)[0], *quantized[1:]]
            parts.append([ops.convert_to_numpy(tensor) for tensor in quantized])
        return [np.stack(arrays) for arrays in zip(*parts, strict=True)]

    @property
    def _scale_dtype(self) -> str:
        return promote_dtypes(self.variable_dtype, "float32")

    def quantized_build(
        self, input_shape: tuple[int, int, int], mode: str, config: Any = None
    ) -> None:
        """Adds the variables of quantized kernels.

        Args:
            input_shape: tuple of integers. The `kernel_shape`.
            mode: string. `"int8"` or `"int4"`.
            config: `keras.quantizers.QuantizationConfig` or `None`. Defaults to `None`.
        """
        num_experts, rows, columns = input_shape
        block_size = self.check_quantization(mode, config)
        groups = () if block_size is None else (rows // block_size,)
        stored_columns = (columns + 1) // 2 if mode == "int4" else columns

        def add(name: str, shape: tuple[int, ...], initializer: str, dtype: str) -> Any:
            arguments = {"shape": shape, "initializer": initializer, "dtype": dtype}
            return self.add_weight(name=name, trainable=False, autocast=False, **arguments)

        self.kernel = add("kernel", (num_experts, rows, stored_columns), "zeros", "int8")
        shape = (num_experts, *groups, columns)
        self.kernel_scale = add("kernel_scale", shape, "ones", self._scale_dtype)
        if block_size is not None:
            self.kernel_zero = add("kernel_zero", shape, "zeros", "int8")
        mark_quantized(self, mode, block_size)

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
    ) -> None:
        """Adds LoRA matrices for each expert, and freezes the kernels.

        Args:
            rank: integer. The number of columns of A.
            lora_alpha: float or `None`. The LoRA's scale is `lora_alpha / rank`. `None` takes
                `rank`. Defaults to `None`.
            a_initializer: string, dict or `keras.initializers.Initializer`. Initializer of A.
                Defaults to `"he_uniform"`.
            b_initializer: string, dict or `keras.initializers.Initializer`. Initializer of B.
                Defaults to `"zeros"`.

        Raises:
            InvalidInputError: The layer has a LoRA already, or is not built.
        """
        if self.lora_enabled or not self.built:
            problem = "has a LoRA already" if self.lora_enabled else "is not built"
            raise InvalidInputError(f"{self.name!r} {problem}, so no LoRA can be added to it.")
        num_experts, num_rows, num_columns = self.kernel_shape
        shapes = {"a": (num_experts, num_rows, rank), "b": (num_experts, rank, num_columns)}
        initializers = {"a": a_initializer, "b": b_initializer}
        with new_weights(self):
            self.lora_kernel_a, self.lora_kernel_b = (
                self.add_weight(
                    name=f"lora_kernel_{name}",
                    shape=shape,
                    initializer=stack_initializer(
                        keras.initializers.get(initializers[name]), num_experts
                    ),
                    dtype="float32",
                )
                for name, shape in shapes.items()
            )
        self.kernel.trainable = False
        self.lora_enabled = True
        self.lora_rank = rank
        self.lora_alpha = rank if lora_alpha is None else lora_alpha

    def save_own_variables(self, store: Any) -> None:
        values = self._saved_variables
        if self.lora_enabled:
            values = self._merge_lora()
        for index, value in enumerate(values):
            store[str(index)] = value

    def _merge_lora(self) -> list[Array]:
        """Returns the values of the saved variables with the LoRA added to the kernels."""
        stack = self.stack()
        kernels = [
            ops.convert_to_numpy(stack.choose(expert).merge())
            for expert in range(self.kernel_shape[0])
        ]
        if self.quantization_mode is None:
            return [np.stack(kernels)]
        config = self.quantization_config
        block_size = self.check_quantization(self.quantization_mode, config)
        return self._quantize_each(kernels, self.quantization_mode, block_size, config)

    def load_own_variables(self, store: Any) -> None:
        if not self.lora_enabled:
            super().load_own_variables(store)
            return
        variables = self._saved_variables
        if len(store.keys()) != len(variables):
            raise InvalidInputError(
                f"The file holds {len(store.keys())} variables of {self.path!r}, expected "
                f"{len(variables)}: it is that of a model that is not quantized as this one is."
            )
        for index, variable in enumerate(variables):
            variable.assign(store[str(index)])
        for variable in (self.lora_kernel_a, self.lora_kernel_b):
            variable.assign(ops.zeros(variable.shape, variable.dtype))
