"""One step of training on PyTorch."""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.data.array_feed import ArrayFeed
from keras_deepseek.backend.data.batch_stream import Epochs
from keras_deepseek.backend.keras_private.layer_calls import recomputed_call
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.backend.keras_private.trainers import runs_as_written
from keras_deepseek.backend.profiling.step_trace import Line
from keras_deepseek.backend.protocols.step import Step, WeightChange
from keras_deepseek.backend.torch import profiling
from keras_deepseek.backend.torch.compute import to_tensor
from keras_deepseek.backend.torch.optimizer_update import apply_update
from keras_deepseek.backend.torch.recorded_function import RecordedFunction, RecordedParts
from keras_deepseek.backend.torch.recurrent_layers import fuse_recurrent_layers

_PART = 2**18
"""The number of squares that float32 adds up to five digits."""


class TorchStep(Step):
    """Implements `Step` by PyTorch."""

    def differentiate(
        self,
        compute: Callable[[], tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
    ) -> tuple[Any, Callable[..., list[Any]]]:
        with torch.enable_grad():  # The caller may be in `torch.no_grad()`.
            scalar, aux = compute()
        sources = [variable.value for variable in variables]

        def backward(
            factor: Any = None, receive: Callable[[int, Any], None] | None = None
        ) -> list[Any]:
            if not scalar.requires_grad:  # The scalar depends on no variable.
                return [None for _ in sources]
            upstream = None if factor is None else torch.as_tensor(factor).to(scalar).reshape(())
            if receive is None:
                return list(torch.autograd.grad(scalar, sources, upstream, allow_unused=True))
            with contextlib.ExitStack() as stack:
                for index, source in enumerate(sources):
                    stack.callback(setattr, source, "grad", source.grad)
                    source.grad = None
                    hand_over = functools.partial(_hand_over, receive, index)
                    stack.callback(source.register_post_accumulate_grad_hook(hand_over).remove)
                torch.autograd.backward(scalar, upstream, inputs=sources)
            return [None for _ in sources]

        return aux, backward

    def count_kept_bytes(
        self,
        compute: Callable[[], tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
        batch: Any,
    ) -> int:
        saved: weakref.WeakSet[_Kept] = weakref.WeakSet()

        def keep(tensor: torch.Tensor) -> _Kept:
            saved.add(holder := _Kept(tensor))
            return holder

        there = [variable.value for variable in (*variables, *states)]
        there += [array for array in keras.tree.flatten(batch) if isinstance(array, torch.Tensor)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda holder: holder.tensor):
            result = compute()  # The result keeps the saved tensors alive.
        storages = {holder.tensor.untyped_storage() for holder in saved}
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        for tensor in there:
            sizes.pop(tensor.untyped_storage().data_ptr(), None)
        del result
        return sum(sizes.values())

    def rematerialize(
        self, layer: keras.Layer, call: Callable[..., Any], states: Sequence[keras.Variable]
    ) -> Callable[..., Any]:
        # PyTorch stops the second call as soon as it has what it needs. A recurrent layer resets
        # its dropout masks at the end of a call, so it would go on with those of the first call.
        is_whole = any(
            hasattr(sublayer, "reset_dropout_mask") for sublayer in flatten_layers(layer)
        )

        def run(compute: Callable[..., Any], floats: Sequence[Any]) -> Any:
            with set_checkpoint_early_stop(not is_whole):
                return checkpoint(compute, *floats, use_reentrant=False)

        return recomputed_call(layer, call, states, run)

    def find_finite(self, tensors: Sequence[Any]) -> list[bool]:
        # All are started before the first is awaited.
        flags = [torch.isfinite(tensor).all() for tensor in tensors]
        return [bool(is_finite) for is_finite in flags]

    def global_norm(self, gradients: Sequence[Any]) -> Any:
        return self.norms(gradients)[1]

    def make_weight_change(self) -> WeightChange:
        return _WeightChange(self.norms)

    def norms(self, tensors: Sequence[Any]) -> tuple[Any, Any]:
        return _join([_part_norms(tensor.detach()) for tensor in tensors])

    def concatenate(self, vectors: Sequence[Any]) -> Any:
        return torch.cat([vector.to(vectors[0].device) for vector in vectors])

    def add_multiples(self, sums: Sequence[Any], tensors: Sequence[Any], factor: Any) -> list[Any]:
        factor = torch.as_tensor(factor)
        is_known = factor.device.type == "cpu" and not torch.compiler.is_compiling()
        with torch.no_grad():
            for total, tensor in zip(sums, tensors, strict=True):
                if is_known:
                    total.add_(tensor, alpha=float(factor))
                else:
                    total.addcmul_(tensor, factor.to(total.device))
        return list(sums)

    def make_recorded(
        self,
        function: Callable[[Any], Any],
        model: keras.Model,
        find_obstacle: Callable[[], str | None],
    ) -> Callable[[Any], Any]:
        return RecordedFunction(function, model, find_obstacle)

    def make_recorded_parts(
        self,
        function: Callable[[Any], Any],
        model: keras.Model,
        find_obstacle: Callable[[], str | None],
    ) -> Callable[[Any], Any]:
        return RecordedParts(function, model, find_obstacle)

    def recorded_evaluation(
        self, model: keras.Model, find_obstacle: Callable[[str], str | None]
    ) -> Callable[[], AbstractContextManager[None]]:
        steps = {
            name: RecordedFunction(
                functools.partial(getattr(type(model), name), model),
                model,
                functools.partial(find_obstacle, name),
            )
            for name in ("test_step", "predict_step")
        }

        def in_use() -> AbstractContextManager[None]:
            has_own = steps.keys() & vars(model).keys()
            return own_attributes(model, **({} if runs_as_written(model) or has_own else steps))

        return in_use

    def fuse_recurrent_layers(self, model: keras.Model) -> AbstractContextManager[object]:
        return fuse_recurrent_layers(model)

    def apply_update(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[Any],
        variables: Sequence[keras.Variable],
        factor: Any = None,
    ) -> None:
        apply_update(optimizer, gradients, variables, factor)

    def make_train_function(
        self, model: keras.Model, carried: Callable[[], Sequence[keras.Variable]], *, force: bool
    ) -> Callable[..., Any]:
        type(model).make_train_function(model, force=force)
        function: Callable[..., Any] = model.train_function
        return function

    def run_step(self, model: keras.Model, batch: Any) -> dict[str, Any]:
        return dict(model.train_function([keras.tree.map_structure(to_tensor, batch)]))

    def run_before_step(
        self, model: keras.Model, train_step: Callable[..., Any], prepare: Callable[[], None]
    ) -> Callable[..., Any] | None:
        return None  # Keras looks up `train_step` at each step.

    def feed_batches(self, make_batches: Callable[[], Iterator[Any]], specs: Any) -> Iterable[Any]:
        # No `DataLoader`: each draws a number from PyTorch's global generator when it starts.
        return Epochs(make_batches, to_tensor)

    def can_feed_arrays(self, model: keras.Model, method: str, shuffle: bool | str) -> bool:
        return not shuffle  # `fit` takes a stream of batches.

    def feed_arrays(self, feed: Any) -> Iterable[Any]:
        return _ArrayPasses(feed)

    def prefers_own_feed(self, x: Any) -> bool:
        return not isinstance(x, torch.utils.data.DataLoader)  # Keras passes its batches on.

    def mark(self, name: str) -> AbstractContextManager[object]:
        return profiling.mark(name)

    def annotate(self, name: str) -> AbstractContextManager[object]:
        return profiling.annotate(name)

    def trace_steps(self, model: keras.Model, lines: list[Line]) -> AbstractContextManager[object]:
        return profiling.trace_steps(model, lines)

    def read_buffers(self, model: keras.Model) -> dict[str, Array]:
        return {
            name: keras.ops.convert_to_numpy(buffer).copy()
            for name, buffer in _buffers(model).items()
        }

    def write_buffers(self, model: keras.Model, buffers: dict[str, Array]) -> None:
        with torch.no_grad():
            for name, buffer in _buffers(model).items():
                buffer.copy_(keras.ops.convert_to_tensor(buffers[name]))

    def draw_seed(self) -> int:
        return int(torch.randint(2**31, ()))  # The same as a `DataLoader`.

    def read_framework_random_state(self) -> dict[str, Array]:
        state = {"cpu": torch.get_rng_state().numpy().copy()}
        for index in range(torch.cuda.device_count()):
            state[f"cuda:{index}"] = torch.cuda.get_rng_state(index).numpy().copy()
        return state

    def write_framework_random_state(self, state: dict[str, Array]) -> None:
        torch.set_rng_state(torch.from_numpy(state["cpu"].copy()))
        for index in range(torch.cuda.device_count()):
            if f"cuda:{index}" in state:
                torch.cuda.set_rng_state(torch.from_numpy(state[f"cuda:{index}"].copy()), index)


class _ArrayPasses:
    """An iterable over the batches of arrays, in place of a `DataLoader`."""

    def __init__(self, feed: ArrayFeed) -> None:
        self._feed = feed

    def __iter__(self) -> Iterator[Any]:
        torch.empty((), dtype=torch.int64).random_()  # A `DataLoader` draws a number here.
        # Copies of the rows: a step may write to its batch.
        return self._feed.batches(np.arange(self._feed.num_rows), to_tensor)


def _hand_over(receive: Callable[[int, Any], None], index: int, source: torch.Tensor) -> None:
    """Gives a gradient that was just found to `receive` alone, so that it may be dropped."""
    gradient, source.grad = source.grad, None
    receive(index, gradient)


class _WeightChange(WeightChange):
    """Keeps copies of the weights from one update to the next.

    A step then reads each weight once, right after the update, while the processor's cache holds
    the weight. The memory of the copies is kept too: new memory took 20 times as long on a CPU.
    """

    def __init__(self, norms: Callable[[Sequence[Any]], tuple[Any, Any]]) -> None:
        super().__init__(norms)
        self._seen: list[Any] = []
        self._sizes: Any = None

    def begin(self, variables: Sequence[keras.Variable]) -> Any:
        values = [variable.value.detach() for variable in variables]
        if self._seen != [_identify(value) for value in values]:  # Changed since the last update.
            self._before = [value.clone() for value in values]
            self._sizes = self._norms(self._before)[0]
        return self._sizes

    def end(self, variables: Sequence[keras.Variable]) -> Any:
        changes, sizes, self._seen = [], [], []
        for copy, variable in zip(self._before, variables, strict=True):
            value = variable.value.detach()
            changes.append(_part_norms(copy.sub_(value)))
            sizes.append(_part_norms(copy.copy_(value)))
            self._seen.append(_identify(value))
        self._sizes = _join(sizes)[0]
        return _join(changes)[0]


def _identify(value: torch.Tensor) -> Any:
    """Returns a key that changes with each write into a tensor: PyTorch counts the writes."""
    return value.data_ptr(), value._version  # noqa: SLF001


def _part_norms(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Returns the norms of the parts of a tensor, in at least float32.

    One float32 sum of millions of squares would be off by a thousandth.
    """
    is_large = tensor.numel() > _PART
    parts = tensor.reshape(-1).split(_PART) if is_large else [tensor]
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return [torch.linalg.vector_norm(part, dtype=dtype) for part in parts]


def _join(norms: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the norm of each tensor, from those of its parts, and the norm of all together."""
    device = norms[0][0].device
    parts = torch.stack(
        [part.to(device) for tensor_parts in norms for part in tensor_parts]
    ).double()
    total = torch.linalg.vector_norm(parts)
    if len(parts) > len(norms):
        groups = parts.split([len(tensor_parts) for tensor_parts in norms])
        parts = torch.stack([torch.linalg.vector_norm(group) for group in groups])
    return parts.to(torch.float32), total.to(torch.float32)


class _Kept:
    """A holder of a tensor that autograd keeps for the backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _buffers(model: keras.Model) -> dict[str, torch.Tensor]:
    """Returns the buffers of PyTorch modules, named by the index of their layer.

    Names of layers would not do: Keras counts them up.
    """
    return {
        f"{index}/{name}": buffer
        for index, layer in enumerate(flatten_layers(model))
        for name, buffer in layer.named_buffers()
    }
