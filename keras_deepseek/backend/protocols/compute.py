"""Operations on tensors that Keras has not, or that a framework does faster than Keras."""

import abc
import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_deepseek.artifacts.signature import Array


class Compute(abc.ABC):
    """The interface for tensor operations, gradients, loops, and values of variables."""

    @abc.abstractmethod
    def count_flops(self, function: Callable[..., Any], *args: Any) -> int:
        """Counts the floating-point operations of `function(*args)`; a multiply-add counts 2."""

    @abc.abstractmethod
    def compute_gradients(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Array],
        variables: Sequence[keras.Variable],
    ) -> tuple[list[Array], list[Array]]:
        """Returns the gradients of the scalar `function(*inputs)` by its inputs and the variables.

        They are zeros where the scalar does not depend on an input or a variable.
        """

    @abc.abstractmethod
    def apply_with_gradient(
        self,
        function: Callable[..., Any],
        gradient: Callable[..., Sequence[Any]],
        tensors: Sequence[Any],
        constants: Sequence[Any],
    ) -> Any:
        """Returns the tensor `function(*tensors, *constants)`, with a gradient from the caller.

        `gradient(upstream, *tensors, *constants)` returns the gradients by `tensors`. Constants
        have none. The framework keeps nothing that `function` computes for the backward pass.
        """

    @abc.abstractmethod
    def top_k(self, values: Any, k: int) -> tuple[Any, Any]:
        """Returns the `k` largest values along the last axis, and their int32 indices.

        Among equal values the first ones are taken.
        """

    def fuses_attention(self, query: Any) -> bool:
        """Returns True if `ops.dot_product_attention` is faster than its separate operations.

        The steps are scores, softmax and weighted sums. By default it is not: XLA has no fused
        kernel on a CPU, and on TensorFlow Keras calls the same steps.
        """
        return False

    @abc.abstractmethod
    def compile_function(
        self,
        function: Callable[..., Sequence[Any]],
        variables: Sequence[keras.Variable],
        *,
        uses_xla: bool,
        has_gradients: bool,
    ) -> Callable[..., Sequence[Any]]:
        """Compiles a function of tensors, as Keras's `predict` or `fit` would compile it.

        Args:
            function: The function. It may assign variables; on JAX they then keep their values.
            variables: The variables that it uses.
            uses_xla: Keras's `jit_compile`: XLA on TensorFlow, `torch.compile` on PyTorch.
            has_gradients: True if the function computes gradients.
        """

    def outside_compilation(self) -> AbstractContextManager[object]:
        """Returns a context manager in which tensors are made outside of a function being compiled.

        A tensor that is made inside can't be used after the function was compiled.
        """
        return contextlib.nullcontext()

    def compile_for_one_call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of tensors in the form whose calls are fastest."""
        return function

    @abc.abstractmethod
    def multiply_int8(self, rows: Any, kernel: Any) -> Any:
        """Returns the product of two int8 matrices as exact int32 numbers.

        It is that of `ops.matmul`, which is slow on CPUs: PyTorch and TensorFlow multiply integers
        without vector instructions, and XLA does so for a single row.
        """

    def has_attention_kernel(self) -> bool:
        """Returns True if `ops.dot_product_attention` does not keep the scores in memory.

        It is then faster than its separate operations on long sequences, on a CPU too.
        """
        return False

    def query_block_size(self, query: Any) -> int:
        """Returns the number of queries of a long causal sequence to compute together.

        Each block leaves out the keys that come after it, half of the work in all. Smaller blocks
        leave out more, and their scores stay in the processor's cache. Larger blocks take fewer
        products.
        """
        return 256

    @abc.abstractmethod
    def read_integer(self, value: Any) -> int | None:
        """Converts an integer or integer scalar tensor to a number; `None` while it is traced."""

    @abc.abstractmethod
    def is_traced(self, value: Any) -> bool:
        """Returns True for a tensor without values, while a function is traced or compiled."""

    @abc.abstractmethod
    def read_array(self, value: Any) -> Array | None:
        """Converts a tensor to an array if the host has its values, else to `None`.

        The host has not got them while the tensor is traced, or lies on an accelerator.
        """

    @abc.abstractmethod
    def can_read_shapes(self, value: Any) -> bool:
        """Returns True if shapes may depend on a tensor's numbers at no cost."""

    def has_free_shapes(self, value: Any) -> bool:
        """Returns True if shapes may depend on a tensor's numbers, also while it is traced."""
        return self.can_read_shapes(value)

    def reads_in_place(self, index: Any) -> bool:
        """Returns True if `tensor[number]`, with a number of `index`, makes no copy.

        No gradients may be needed: that of the tensor would be as large as the tensor.
        """
        return False

    @abc.abstractmethod
    def repeat(
        self,
        body: Callable[..., Sequence[Any]],
        times: Any,
        state: Sequence[Any],
        variables: Sequence[keras.Variable] = (),
    ) -> tuple[Any, ...]:
        """Runs `state = body(index, *state)` `times` times in sequence, and returns the last state.

        `times` may be a scalar tensor. `variables` are those that `body` may assign.
        """

    def loops_over_blocks(self) -> bool:
        """Returns True if `stack` may be used, and is faster than one operation on all blocks.

        `stack` has no gradient, so it is used inside functions of `compile_with_state` and
        `compile_inference` alone. It is faster on a CPU, where it was measured; a GPU would wait
        for each block.
        """
        return False

    @abc.abstractmethod
    def stack(self, function: Callable[[Any], Any], num_results: Any, num_rows: Any) -> Any:
        """Stacks `function(index)` for each index below `num_results`, padded by zeros.

        Args:
            function: Function whose tensors all have one shape.
            num_results: Integer scalar tensor. TensorFlow and PyTorch need at least 1.
            num_rows: The first size of the stack: integer, or scalar tensor on TensorFlow if the
                batch size is unknown.
        """

    @abc.abstractmethod
    def run_if(
        self, condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
    ) -> None:
        """Calls a function that assigns `variables`, if a boolean scalar tensor is true."""

    @abc.abstractmethod
    def assign_array(self, variable: keras.Variable, source: Any) -> None:
        """Copies an array-like source, such as a slice of a file, into a variable, piece by piece.

        Where the framework allows it, a process reads only its own shards of a sharded variable.
        """

    def view_array(self, variable: keras.Variable, source: Array) -> bool:
        """Lets a variable use the memory of an array, if the framework can; returns True then.

        The array is writable, and may be transposed. By default no variable does.
        """
        return False

    def is_slow_view(self, variable: keras.Variable) -> bool:
        """Returns True if a product of one row is slower with a view than with a copy of it."""
        return False

    def copy_view(self, variable: keras.Variable) -> None:
        """Copies a variable that uses the memory of an array into memory of its own."""

    def unset_initializer(self) -> Any:
        """Returns the initializer for a variable that is assigned before it is read."""
        return "zeros"
