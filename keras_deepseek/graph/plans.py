"""Programs for the kinds of inputs that come: lengths, dtypes, dtype policies and nesting."""

import collections
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
from keras import tree

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layer_precision import read_policies
from keras_deepseek.backend.keras_private.layers import flatten_layers, functional_graph
from keras_deepseek.backend.keras_private.masks import read_mask
from keras_deepseek.graph.free_sizes import FreeAxis, trace_free
from keras_deepseek.graph.ir import Shape, count_operations
from keras_deepseek.graph.passes import run_passes
from keras_deepseek.graph.passes.contraction import count_multiply_adds
from keras_deepseek.graph.program import Program
from keras_deepseek.graph.trace import CannotOpenError, trace_model

_log = logging.getLogger(__name__)

_MOST_PLANS = 64
"""The most kinds and shapes of inputs that a model remembers. The oldest is dropped."""


class Plan:
    """A program for one kind of inputs, and the shapes that fit it.

    Args:
        model: The model to trace.
        example: Inputs of known shapes, as tensors or `KerasTensor`s.
        training: The value of `training` in the program.
        passes: The names of the passes to run.
        whole: Paths of layers to keep whole.
    """

    def __init__(
        self,
        model: keras.Model,
        example: Any,
        *,
        training: bool,
        passes: Collection[str],
        whole: Collection[str] = (),
    ) -> None:
        shapes = [tuple(each.shape) for each in tree.flatten(example)]
        with backend.current().compute.outside_compilation():
            graph, self.axes = trace_free(
                lambda inputs: trace_model(model, inputs, training=training, whole=whole),
                example,
                _declared_shapes(model, shapes),
            )
            self.size_before = (count_operations(graph), count_multiply_adds(graph))
            self.rewrites = run_passes(graph, passes, training)
        self.size = (count_operations(graph), count_multiply_adds(graph))
        """The number of operations and of multiply-adds, at the sizes of the trace."""
        self.leaves = graph.leaves
        self.program = Program(graph)
        self.has_run = False
        """True after the program has run once without an error."""
        self._pattern = _fixed_sizes(shapes, self.axes)

    def fits(self, shapes: Sequence[Shape]) -> bool:
        """Returns True if the program may get inputs of these shapes."""
        return _fixed_sizes(shapes, self.axes) == self._pattern and all(
            len({shapes[index][place] for index, place in axis.places}) == 1 for axis in self.axes
        )


class Plans:
    """The plans of a model, which are made when inputs of a new kind come.

    Calls of the model and traces exclude each other: a call during a trace would get symbols.

    Args:
        model: The model.
        passes: The names of the passes to run.
        example: Example inputs, as `KerasTensor`s. Their sizes stand for unknown ones.
    """

    def __init__(self, model: keras.Model, passes: Collection[str], example: Any) -> None:
        self._model = model
        self._passes = passes
        self._example = example
        self._layers = [each for each in flatten_layers(model) if each.variables]
        self._plans: collections.OrderedDict[Any, Plan | None] = collections.OrderedDict()
        self._policies: list[tuple[keras.DTypePolicy, ...]] = []
        self._lock = _SharedLock()

    def run(self, inputs: Any, training: bool, otherwise: Callable[[], Any]) -> Any:
        """Runs the program for these inputs, or calls `otherwise` if there is none."""
        tensors = [inputs] if hasattr(inputs, "shape") else tree.flatten(inputs)
        if any(read_mask(tensor) is not None for tensor in tensors):
            return self.run_original(otherwise)
        key = self._key(inputs, tensors, training)
        whole: set[str] = set()
        while True:
            if key not in self._plans or whole:
                with self._lock.exclusive():
                    self._keep(key, self._find(key, inputs, training, whole))
            with self._lock:
                plan = self._plans.get(key)
                if plan is None:
                    return otherwise()
                try:
                    outputs = plan.program(inputs)
                except Exception as error:
                    if plan.has_run:
                        raise
                    failed = error
                else:
                    plan.has_run = True
                    return outputs
            # A layer whose operation fails in the first run is kept whole. Without one, the
            # original raises the error too, or is right.
            layer = plan.program.failed_layer(failed)
            _log.info("%s: the program failed at %s: %s", self._model.name, layer, failed)
            if layer is None or layer in whole:
                with self._lock.exclusive():
                    self._keep(key, None)
                return self.run_original(otherwise)
            whole.add(layer)

    def run_original(self, original: Callable[[], Any]) -> Any:
        """Calls the original model, at a time when no other thread traces it."""
        with self._lock:
            return original()

    def has_program(self, inputs: Any, training: bool) -> bool:
        """Returns True if these inputs have run a program before."""
        return self._plans.get(self._key(inputs, tree.flatten(inputs), training)) is not None

    def make(self, example: Any, training: bool) -> Plan:
        """Returns the plan for example inputs, given as `KerasTensor`s of known shapes."""
        key = self._key(example, tree.flatten(example), training)
        with self._lock.exclusive():
            plan = self._fitting(key)
            if plan is None:
                plan = Plan(self._model, example, training=training, passes=self._passes)
                self._keep(key, plan)
            return plan

    def _key(self, inputs: Any, tensors: list[Any], training: bool) -> Any:
        policies = read_policies(self._layers)
        try:
            number = self._policies.index(policies)
        except ValueError:
            number = len(self._policies)
            self._policies.append(policies)
        shapes = tuple([tuple(tensor.shape) for tensor in tensors])
        # In training, a frozen BatchNormalization computes something else.
        trainable = training and tuple([layer.trainable for layer in self._layers])
        return trainable, number, _structure(inputs), shapes, tuple(map(type, tensors))

    def _keep(self, key: Any, plan: Plan | None) -> None:
        self._plans[key] = plan
        if len(self._plans) > _MOST_PLANS:
            self._plans.popitem(last=False)

    def _find(self, key: Any, inputs: Any, training: bool, whole: Collection[str]) -> Plan | None:
        """Returns a plan that fits, or a new one, or `None` if none can be made."""
        tensors = tree.flatten(inputs)
        if not all(map(_is_dense, tensors)):
            return None
        if not whole and (known := self._fitting(key)) is not None:
            return known
        shapes = key[3]
        example = [
            keras.KerasTensor(shape, keras.backend.standardize_dtype(tensor.dtype))
            for shape, tensor in zip(self._known_shapes(shapes), tensors, strict=True)
        ]
        if any(None in each.shape for each in example):
            return None
        try:
            plan = Plan(
                self._model,
                tree.pack_sequence_as(inputs, example),
                training=training,
                passes=self._passes,
                whole=whole,
            )
        except CannotOpenError:
            return None
        return plan if plan.fits(shapes) else None

    def _fitting(self, key: Any) -> Plan | None:
        """Returns a plan made before for inputs of this kind."""
        for other, plan in self._plans.items():
            if plan is not None and other[:3] == key[:3] and plan.fits(key[3]):
                return plan
        return None

    def _known_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Returns shapes with the sizes of the example inputs in place of unknown sizes."""
        known = [tuple(each.shape) for each in tree.flatten(self._example)]
        if [len(each) for each in known] != [len(each) for each in shapes]:
            return list(shapes)
        return [
            tuple(there if size is None else size for size, there in zip(shape, given, strict=True))
            for shape, given in zip(shapes, known, strict=True)
        ]


class _SharedLock:
    """A lock that many threads hold together in a `with` block, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holders = 0

    def __enter__(self) -> None:
        with self._condition:
            self._holders += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._holders -= 1
            self._condition.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the lock alone."""
        with self._condition:
            self._condition.wait_for(lambda: self._holders == 0)
            yield


_dtype_name = functools.cache(keras.backend.standardize_dtype)


def _structure(inputs: Any) -> Any:
    """Returns the nesting and the dtypes of inputs, as something hashable."""
    if isinstance(inputs, dict):
        return tuple((name, _structure(inputs[name])) for name in sorted(inputs))
    if isinstance(inputs, list | tuple):
        return type(inputs), *map(_structure, inputs)
    return _dtype_name(inputs.dtype)


def _is_dense(tensor: Any) -> bool:
    sparse = ("dense_shape", "nse", "row_splits")  # Of TensorFlow, JAX, and ragged tensors.
    return not any(hasattr(tensor, name) for name in sparse)


def _fixed_sizes(shapes: Sequence[Shape], axes: Sequence[FreeAxis]) -> list[list[int | None]]:
    """Returns shapes with `None` for the sizes of free axes."""
    fixed: list[list[int | None]] = [list(shape) for shape in shapes]
    for axis in axes:
        for index, place in axis.places:
            fixed[index][place] = None
    return fixed


def _declared_shapes(model: keras.Model, shapes: Sequence[Shape]) -> list[Any]:
    """Returns the shapes that a model declares for its inputs, else those that it gets."""
    graph = functional_graph(model)
    declared = [tuple(each.shape) for each in graph.inputs] if graph is not None else []
    if [len(each) for each in declared] != [len(each) for each in shapes]:
        return list(shapes)
    return declared
