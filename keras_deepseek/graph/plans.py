"""Programs for the kinds of inputs that come: lengths, dtypes, dtype policies and nesting."""

import collections
import contextlib
import functools
import logging
import operator
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
from keras import tree

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layer_precision import PolicyKey
from keras_deepseek.backend.keras_private.layers import flatten_layers, functional_graph
from keras_deepseek.backend.keras_private.masks import read_mask
from keras_deepseek.graph.free_sizes import trace_free, with_sizes
from keras_deepseek.graph.ir import Shape, count_operations
from keras_deepseek.graph.passes import run_passes
from keras_deepseek.graph.passes.contraction import count_multiply_adds
from keras_deepseek.graph.program import Program
from keras_deepseek.graph.trace import CannotOpenError, as_symbols, trace_model

_log = logging.getLogger(__name__)

_MOST_PLANS = 64
"""The most kinds and shapes of inputs that a model remembers. The least recent is dropped."""


class Plan:
    """A program for one kind of inputs, and the shapes that fit it.

    Args:
        example: Inputs of known shapes, as tensors or `KerasTensor`s.
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
        declared = _declared_shapes(model, shapes)
        with lock_of(model).exclusive(), backend.current().compute.outside_compilation():
            graph, self.axes = trace_free(
                lambda inputs: trace_model(model, inputs, training=training, whole=whole),
                example,
                declared,
            )
            self.size_before = (count_operations(graph), count_multiply_adds(graph, training))
            self.rewrites = run_passes(graph, passes, training)
        self.size = (count_operations(graph), count_multiply_adds(graph, training))
        """The number of operations and of multiply-adds, at the sizes of the trace."""
        self.leaves = graph.leaves
        self.open_axes = [
            axis
            for axis in self.axes
            if any(declared[i][place] is None for i, place in axis.places)
        ]
        """The free axes that the model leaves open; the batch size of an input may be fixed."""
        self.program = Program(graph)
        self.has_run = False
        """True after the program has run once without an error."""
        self._shapes = shapes

    def fits(self, shapes: Sequence[Shape]) -> bool:
        """Returns True if the program may get inputs of these shapes."""
        if list(map(len, shapes)) != list(map(len, self._shapes)):
            return False
        places = [axis.places[0] for axis in self.axes]
        sizes = [shapes[index][place] for index, place in places]
        return with_sizes(self._shapes, self.axes, sizes) == list(shapes)


class Plans:
    """The plans of a model, which are made when inputs of a new kind come.

    Calls and traces exclude each other: a call during a trace would get symbols.

    Args:
        example: Example inputs, as `KerasTensor`s. Their sizes stand for unknown ones.
    """

    def __init__(self, model: keras.Model, passes: Collection[str], example: Any) -> None:
        self._model = model
        self._passes = passes
        self.example = example
        self._layers = [each for each in flatten_layers(model) if each.variables]
        self._plans: collections.OrderedDict[Any, Plan | None] = collections.OrderedDict()
        self._lock = lock_of(model)

    def run(self, inputs: Any, training: bool, otherwise: Callable[[], Any]) -> Any:
        """Runs the program for these inputs, or calls `otherwise` if there is none."""
        tensors = [inputs] if hasattr(inputs, "shape") else tree.flatten(inputs)
        if any(read_mask(tensor) is not None for tensor in tensors):
            return self.run_original(otherwise)
        key = self._key(inputs, tensors, training)
        whole: set[str] = set()
        while True:
            if key not in self._plans or whole:
                with contextlib.suppress(CannotOpenError):
                    self.make(inputs, training, whole)
            with self._lock:
                plan = self._plans.get(key)
                if plan is None:
                    return otherwise()
                self._plans.move_to_end(key)
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
                    self._plans[key] = None
                return self.run_original(otherwise)
            whole.add(layer)

    def run_original(self, original: Callable[[], Any]) -> Any:
        """Calls the original model, at a time when no other thread traces it."""
        with self._lock:
            return original()

    def has_program(self, inputs: Any, training: bool) -> bool:
        """Returns True if these inputs have run a program before."""
        return self._plans.get(self._key(inputs, tree.flatten(inputs), training)) is not None

    def make(self, inputs: Any, training: bool, whole: Collection[str] = ()) -> Plan:
        """Returns a plan for tensors or `KerasTensor`s: a new one, if no other fits.

        Raises `CannotOpenError` if there can be no program for them.
        """
        tensors = tree.flatten(inputs)
        key = kind, shapes, _ = self._key(inputs, tensors, training)
        with self._lock.exclusive():
            made = (plan for other, plan in self._plans.items() if other[0] == kind and plan)
            plan = None if whole else next((each for each in made if each.fits(shapes)), None)
            self._plans[key] = None  # It stays if no program can be made.
            if len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
            if not all(map(_is_dense, tensors)):
                raise CannotOpenError("gets sparse or ragged inputs")
            if any(0 in shape for shape in shapes):  # Operations of TensorFlow fail on it.
                raise CannotOpenError("gets an empty batch")
            if plan is None:
                example = as_symbols(inputs, self._known_shapes(shapes))
                plan = Plan(
                    self._model, example, training=training, passes=self._passes, whole=whole
                )
            if not plan.fits(shapes):
                raise CannotOpenError("fixes a size that its inputs leave open")
            self._plans[key] = plan
            return plan

    def _key(self, inputs: Any, tensors: list[Any], training: bool) -> Any:
        """Returns the kind of inputs, their shapes and their classes."""
        # In training, a frozen BatchNormalization computes something else.
        trainable = training and tuple(map(_read_trainable, self._layers))
        kind = trainable, PolicyKey(self._layers), _structure(inputs)
        # Symbolic sizes, as in `torch.export`, are unknown ones.
        shapes = [tuple([n if type(n) is int else None for n in each.shape]) for each in tensors]
        return kind, tuple(shapes), tuple(map(type, tensors))

    def _known_shapes(self, shapes: Sequence[Shape]) -> Sequence[Shape]:
        """Returns shapes with the sizes of the example inputs in place of unknown sizes."""
        known = [tuple(each.shape) for each in tree.flatten(self.example)]
        if list(map(len, known)) == list(map(len, shapes)):
            shapes = [
                tuple(there if size is None else size for size, there in zip(*each, strict=True))
                for each in zip(shapes, known, strict=True)
            ]
        if any(None in shape for shape in shapes):
            raise CannotOpenError("gets inputs of an unknown size")
        return shapes


class SharedLock:
    """A lock that many threads hold together in a `with` block, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holders: list[int] = []

    def __enter__(self) -> None:
        with self._condition:
            self._holders.append(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._holders.remove(threading.get_ident())
            self._condition.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the lock alone. A thread that holds it already does not wait for itself."""
        with self._condition:
            own = {threading.get_ident()}
            self._condition.wait_for(lambda: own.issuperset(self._holders))
            yield


_locks: weakref.WeakKeyDictionary[keras.Model, SharedLock] = weakref.WeakKeyDictionary()
_making_locks = threading.Lock()


def lock_of(model: keras.Model) -> SharedLock:
    """Returns the lock of a model: traces hold it alone, its optimized models to call."""
    with _making_locks:
        return _locks.setdefault(model, SharedLock())


_read_trainable = operator.attrgetter("trainable")
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


def _declared_shapes(model: keras.Model, shapes: Sequence[Shape]) -> list[Any]:
    """Returns the shapes that a model declares, else those that it gets, of any batch size."""
    graph = functional_graph(model)
    declared = [tuple(each.shape) for each in graph.inputs] if graph is not None else []
    if [len(each) for each in declared] != [len(each) for each in shapes]:
        return [(None, *shape[1:]) for shape in shapes]
    return declared
