"""Models and decoding steps, compiled for inference or written for other runtimes."""

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_deepseek.artifacts.signature import Batch, InferenceFunction
from keras_deepseek.backend import framework_name
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.saved_model_writer import ServingSignatures
from keras_deepseek.errors import NotSupportedError


class CompiledStep:
    """A compiled function of a state and inputs, which returns outputs and the next state.

    Args:
        run: The compiled function.
        count_compilations: Function that returns how often it was compiled, or recorded, so far.
    """

    def __init__(
        self, run: Callable[..., tuple[Any, Any]], count_compilations: Callable[[], int]
    ) -> None:
        self._run = run
        self.count_compilations = count_compilations

    def __call__(self, state: Any, *inputs: Any) -> tuple[Any, Any]:
        """Returns outputs and the next state."""
        return self._run(state, *inputs)


class Inference(abc.ABC):
    """The interface for compiled functions that need no gradient."""

    @abc.abstractmethod
    def compile_inference(
        self, model: NamedModel, find_obstacle: Callable[[], str | None] | None = None
    ) -> InferenceFunction:
        """Compiles a model to a function from NumPy arrays by name to arrays by name.

        PyTorch records operations at the second batch of a shape. `find_obstacle` returns a reason
        why that can't be, or `None`; by default nothing is recorded. With a reason, TensorFlow
        traces the model at the sizes of batches, as `predict` does, not once for all.
        """

    def plain_inference(self, model: NamedModel) -> InferenceFunction:
        """Returns a model as a function of NumPy arrays by name, run at each batch's own sizes."""
        return self.compile_inference(model)

    @abc.abstractmethod
    def compile_with_state(
        self,
        function: Callable[..., tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        model: keras.Model | None = None,
    ) -> CompiledStep:
        """Compiles `function(state, *inputs)`, which returns outputs and the next state.

        The state is `None` at first, then a structure of tensors whose shapes never change. It is
        donated: the next one may use its memory. The inputs are arrays, integers or `None`.
        `variables` are those that it reads, and `model` has the layers that it runs.

        On PyTorch, inputs that are integers stay integers, and the function is run as it is at the
        first call with a state of the same shapes. At the second one its operations are recorded,
        and run in its place once they have done the same to outputs and state. The function is run
        as it is without a `model`, with layers of users, and again after a layer has changed.
        """

    def compiles_by_shape(self) -> bool:
        """Returns True if `compile_with_state` compiles again for each length of a prompt."""
        return True

    def write_slots(self, tensor: Any, start: Any, update: Any) -> Any:
        """Returns a cache tensor with an update written into its slots, from slot `start` on.

        The tensor has the shape `(batch_size, slots, ...)`, the update `(batch_size, new_slots,
        ...)`. It may write in place inside a function of `compile_with_state`.
        """
        return keras.ops.slice_update(tensor, [0, start, *[0] * (len(update.shape) - 2)], update)

    @abc.abstractmethod
    def write_slots_by_row(self, tensor: Any, starts: Any, update: Any) -> Any:
        """Returns what `write_slots` does, where each sequence has its own first slot.

        `starts` is an int32 tensor of shape `(batch_size,)`.
        """

    def write_row(self, tensor: Any, row: Any, update: Any) -> Any:
        """Returns a tensor with an update written into the beginning of one row.

        The tensor has the shape `(rows, size, ...)`, the update `(1, new_size, ...)`, and `row` is
        an int32 scalar tensor. It may write in place, as `write_slots` does.
        """
        return keras.ops.slice_update(tensor, [row, *[0] * (len(update.shape) - 1)], update)

    def calls_to_compile(self) -> int:
        """Returns the calls of a `CompiledStep` after which a shape compiles no more."""
        return 1

    def map_rows(
        self, function: Callable[[Any], Any], rows: tuple[Any, ...], dtypes: tuple[str, ...]
    ) -> Any:
        """Returns the results of a function of the rows of tensors, stacked again.

        `dtypes` are those of the results. JAX computes the rows together. TensorFlow and PyTorch
        compute them one after the other: they can't vectorize all operations that layers use.
        """
        del dtypes  # TensorFlow needs them.
        return keras.ops.vectorized_map(function, rows)

    def run_unrecorded(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """Returns the tensor `function(*tensors)`, without recording the function's operations.

        PyTorch records the operations of a step that comes often. On a CPU it does not record this
        function, but calls it in each step; a step whose gradients pass through it is not recorded.
        The function may use no variables of its own, nor call a layer.
        """
        return function(*tensors)


class Export:
    """The interface for writing a model in file formats of other runtimes, where it can."""

    def write_saved_model(
        self, model: NamedModel, path: str, signatures: ServingSignatures
    ) -> None:
        """Writes a model as a SavedModel folder, or raises `NotSupportedError`."""
        raise NotSupportedError(f"{framework_name()} can't write a SavedModel itself.")

    def convert_to_litert(
        self, saved_model: Path, *, in_float16: bool, calibration: Sequence[Batch] | None
    ) -> bytes:
        """Returns the content of a LiteRT file made from a SavedModel's `serving_default`.

        It has LiteRT's own operations alone. An operation that LiteRT lacks is replaced if there
        are others that compute the same.

        Args:
            saved_model: The folder.
            in_float16: Whether weights are kept in float16.
            calibration: Batches by input name. If given, whatever has an operation in int8 computes
                in it, by the ranges of these batches.

        Raises:
            ExportError: LiteRT lacks an operation of the model. The message names it.
            NotSupportedError: The framework has no converter. TensorFlow alone has one.
        """
        raise NotSupportedError(f"{framework_name()} can't write LiteRT itself.")

    def write_onnx(self, model: NamedModel, path: str, opset: int) -> None:
        """Writes a model as an ONNX file of an operator set, or raises `NotSupportedError`."""
        raise NotSupportedError(f"{framework_name()} can't write ONNX itself.")
