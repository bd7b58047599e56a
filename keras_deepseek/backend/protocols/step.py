"""The interface to one step of training: gradients, update, batches and changed state."""

import abc
import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.variables import raw_value
from keras_deepseek.backend.profiling.step_trace import Line
from keras_deepseek.backend.tensor_values import multiply_gradients


class WeightChange:
    """Measures variables, and how an update changes them.

    Args:
        norms: `Step.norms`.
    """

    def __init__(self, norms: Callable[[Sequence[Any]], tuple[Any, Any]]) -> None:
        self._norms = norms
        self._before: list[Any] = []

    def begin(self, variables: Sequence[keras.Variable]) -> Any:
        """Keeps the values before the update, and returns the L2 norm of each."""
        self._before = [ops.stop_gradient(variable) for variable in variables]
        return self._norms(self._before)[0]

    def end(self, variables: Sequence[keras.Variable]) -> Any:
        """Returns the L2 norm of the change of each variable."""
        old_values, self._before = self._before, []
        pairs = zip(variables, old_values, strict=True)
        return self._norms([ops.stop_gradient(variable) - old for variable, old in pairs])[0]


class Step(abc.ABC):
    """The interface to a framework's training step, as Keras's training loop runs it."""

    # Gradients.

    @abc.abstractmethod
    def differentiate(
        self,
        compute: Callable[[], tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
    ) -> tuple[Any, Callable[..., list[Any]]]:
        """Runs a forward pass; returns its other outputs, and the backward pass of its scalar.

        `compute` returns the scalar and the other outputs. `backward(factor=None, receive=None)`
        returns the gradients of the scalar by `variables`, times a factor if one is given. A
        gradient is `None` or zeros if the scalar does not depend on the variable. `backward` may
        call `receive(index, gradient)` for some gradients while it still computes others; it then
        returns `None` for them. It can be called once. `states` are the variables that `compute`
        may assign.
        """

    @abc.abstractmethod
    def count_kept_bytes(
        self,
        compute: Callable[[], tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
        batch: Any,
    ) -> int:
        """Returns the bytes that `differentiate` keeps for the backward pass.

        Variables and the arrays of `batch` do not count: they are in memory anyway.
        """

    @abc.abstractmethod
    def rematerialize(
        self, layer: keras.Layer, call: Callable[..., Any], states: Sequence[keras.Variable]
    ) -> Callable[..., Any]:
        """Returns a layer's `call` whose activations are recomputed in the backward pass.

        The second forward pass leaves `states` alone, the variables that `call` may assign.
        """

    def densify(self, gradient: Any) -> Any:
        """Converts a sparse gradient to a dense tensor.

        The gradient of an embedding may be sparse.
        """
        return gradient

    @abc.abstractmethod
    def find_finite(self, tensors: Sequence[Any]) -> list[bool]:
        """Returns, for each floating-point tensor, True if all of its values are finite."""

    def global_norm(self, gradients: Sequence[Any]) -> Any:
        """Returns the L2 norm of all gradients together, a float32 scalar."""
        squares = [ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in gradients]
        return ops.sqrt(ops.sum(ops.stack(squares)))

    def make_weight_change(self) -> WeightChange:
        """Returns an object that measures how updates change variables."""
        return WeightChange(self.norms)

    def norms(self, tensors: Sequence[Any]) -> tuple[Any, Any]:
        """Returns the L2 norm of each tensor, as a float32 vector, and their `global_norm`."""
        tensor_norms = ops.stack([self.global_norm([tensor]) for tensor in tensors])
        return tensor_norms, self.global_norm(tensors)

    def concatenate(self, vectors: Sequence[Any]) -> Any:
        """Joins vectors to one, even if they are on different devices."""
        return ops.concatenate(vectors)

    def add_multiples(self, sums: Sequence[Any], tensors: Sequence[Any], factor: Any) -> list[Any]:
        """Adds `factor * tensor` to the sum of each pair. It may write into the sums.

        All tensors are float32, and `factor` is a scalar.
        """
        return [total + factor * tensor for total, tensor in zip(sums, tensors, strict=True)]

    def make_recorded(
        self,
        function: Callable[[Any], Any],
        model: keras.Model,
        find_obstacle: Callable[[], str | None],
    ) -> Callable[[Any], Any]:
        """Returns a function of a batch that computes the same, without Python where that is slow.

        On PyTorch it records the operations; elsewhere the step is compiled as a whole. The
        function may assign variables, and its result is a structure of tensors and other objects.
        `find_obstacle` returns a reason why the function must run as it is, or `None`.
        """
        return function

    def make_recorded_parts(
        self,
        function: Callable[[Any], Any],
        model: keras.Model,
        find_obstacle: Callable[[], str | None],
    ) -> Callable[[Any], Any]:
        """Does the same as `make_recorded` for a function in two parts.

        The function returns a result of tensors, and its second part. That is a function of a
        divisor, a scalar like the result's first tensor, and of a `Receive`.
        """
        return function

    def recorded_evaluation(
        self, model: keras.Model, find_obstacle: Callable[[str], str | None]
    ) -> Callable[[], AbstractContextManager[None]]:
        """Makes context managers in which a model evaluates and predicts by recordings.

        It is as for `make_recorded`. `find_obstacle` takes `"test_step"` or `"predict_step"`.
        """
        return contextlib.nullcontext

    def fuse_recurrent_layers(self, model: keras.Model) -> AbstractContextManager[object]:
        """Returns a context manager in which the recurrent layers of a model run faster.

        They compute the same up to rounding. By default it does nothing: on TensorFlow and JAX the
        loop over the steps is compiled.
        """
        return contextlib.nullcontext()

    # The update of the weights.

    def apply_update(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[Any],
        variables: Sequence[keras.Variable],
        factor: Any = None,
    ) -> None:
        """Applies gradients as `optimizer.apply` does, in the framework's fastest way.

        A gradient is `None` for a variable that stays as it is. `factor` multiplies all gradients
        first.
        """
        if factor is not None:
            gradients = multiply_gradients(gradients, factor)
        optimizer.apply(gradients, variables)

    def compile_update(
        self, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
    ) -> Callable[[Sequence[Any]], None]:
        """Returns a function that updates variables by gradients as `optimizer.apply` does.

        The optimizer is built for the variables. A gradient is an array, or `None` for a variable
        that stays as it is.
        """

        def update(gradients: Sequence[Any]) -> None:
            tensors = [
                None if gradient is None else ops.convert_to_tensor(gradient)
                for gradient in gradients
            ]
            self.apply_update(optimizer, tensors, variables)

        return update

    # The step inside Keras's training loop.

    def make_train_step(
        self,
        model: keras.Model,
        step: Callable[[Any], dict[str, Any]],
        carried: Callable[[], Sequence[keras.Variable]] = list,
    ) -> Callable[..., Any]:
        """Wraps a training step as the `train_step` that Keras expects on this framework.

        `step` takes the data of a batch and returns the logs. It assigns the variables of the
        model, of its optimizer and of its metrics, and those that `carried` returns.
        """
        return step

    def build_by_step(self, model: keras.Model, batch: Any) -> None:
        """Creates the variables that a model's own `train_step` uses, by tracing that step.

        By default it does nothing: where a step can't be traced, it creates them when it runs.
        `batch` holds `KerasTensor`s.
        """

    @abc.abstractmethod
    def make_train_function(
        self,
        model: keras.Model,
        carried: Callable[[], Sequence[keras.Variable]],
        *,
        force: bool,
    ) -> Callable[..., Any]:
        """Makes Keras create the model's `train_function`; returns a function that calls it.

        `carried` returns the further variables that the step assigns. `force` replaces an existing
        `train_function`. The returned function leaves the model with its variables after an error:
        while Keras trains on JAX, it holds their values outside of the model.
        """

    @abc.abstractmethod
    def run_step(self, model: keras.Model, batch: Any) -> dict[str, Any]:
        """Trains a model that has a `train_function` on one batch, and returns the logs.

        The batch is a tuple of `x`, of `x` and `y`, or of `x`, `y` and sample weights.
        """

    @abc.abstractmethod
    def run_before_step(
        self, model: keras.Model, train_step: Callable[..., Any], prepare: Callable[[], None]
    ) -> Callable[..., Any] | None:
        """Returns a `train_step` that calls `prepare` first, or `None` if steps are not compiled.

        Each call returns another function, so that Keras compiles it again. `prepare` may assign
        the variables of the optimizer.
        """

    def watch_batches(
        self, arguments: tuple[Any, ...], add: Callable[[float], None]
    ) -> tuple[Any, ...] | None:
        """Wraps the arguments of a train function, so that `add` gets the wait for each batch.

        The wait is in seconds. Returns `None` if the function draws no batch in Python.
        """
        return None

    def is_end_of_data(self, error: Exception) -> bool:
        """Returns True if an error of a training function means that there are no more batches."""
        return isinstance(error, StopIteration)

    def stored_value(self, variable: keras.Variable) -> Any:
        """Returns the value of a variable outside of the function that is being traced.

        `None`: it can't be read now. Keras on JAX holds the values elsewhere while it trains.
        """
        return raw_value(variable)

    def separate_variables(self, model: keras.Model) -> None:
        """Gives each variable of a model, its optimizer and its metrics memory of its own.

        By default it does nothing: an assignment copies. On JAX, moving averages that were written
        to the weights share their memory, and a step that donates it twice fails.
        """

    def restoring_variables(self, model: keras.Model) -> AbstractContextManager[object]:
        """Returns a context manager that restores a model's variables after an error in the block.

        On JAX, Keras takes the values out of the variables while it goes over batches, and forgets
        them if the first batch fails.
        """
        return contextlib.nullcontext()

    # The batches.

    @abc.abstractmethod
    def feed_batches(self, make_batches: Callable[[], Iterator[Any]], specs: Any) -> Iterable[Any]:
        """Returns an iterable of batches that Keras's training loop iterates over once an epoch.

        `make_batches` returns an iterator over the batches of one epoch, `specs` are the shapes and
        dtypes of a batch.
        """

    def prefers_own_feed(self, x: Any) -> bool:
        """Returns True if `feed_batches` is faster for the given data than Keras's adapter."""
        return False

    @abc.abstractmethod
    def can_feed_arrays(self, model: keras.Model, method: str, shuffle: bool | str) -> bool:
        """Returns True if `feed_arrays` is faster than Keras's own way, and equal to it.

        `method` is `"fit"`, `"evaluate"` or `"predict"`.
        """

    @abc.abstractmethod
    def feed_arrays(self, feed: Any) -> Iterable[Any]:
        """Returns what Keras's loop takes the batches of an `ArrayFeed` from."""

    # The profile of steps.

    @abc.abstractmethod
    def mark(self, name: str) -> AbstractContextManager[object]:
        """Returns a context manager that names the operations in it for traces of the step.

        A compiled step has these names from the time when it was compiled.
        """

    @abc.abstractmethod
    def annotate(self, name: str) -> AbstractContextManager[object]:
        """Returns a context manager that names the time spent in it, while a trace is taken."""

    @abc.abstractmethod
    def trace_steps(self, model: keras.Model, lines: list[Line]) -> AbstractContextManager[object]:
        """Returns a context manager in which the framework's profiler traces what runs.

        At its end, the lines of the trace are added to `lines`, with the owner of each operation.
        """

    # The state beside Keras's variables.

    def read_buffers(self, model: keras.Model) -> dict[str, Array]:
        """Returns copies of the model's state outside of Keras's variables, by name."""
        return {}

    def write_buffers(self, model: keras.Model, buffers: dict[str, Array]) -> None:
        """Restores the model's state that `read_buffers` returned."""

    def draw_seed(self) -> int:
        """Returns a seed for the order of data, from the generator that Keras's users seed."""
        return random.getrandbits(31)

    def read_framework_random_state(self) -> dict[str, Array]:
        """Returns a copy of the state of the framework's global random number generators."""
        return {}

    def write_framework_random_state(self, state: dict[str, Array]) -> None:
        """Restores the generators' states that `read_framework_random_state` returned."""
