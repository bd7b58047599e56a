"""Programs for the kinds of inputs that come: lengths, dtypes, dtype policies and nesting."""

import bisect
import collections
import functools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
from keras import tree

from keras_deepseek import backend
from keras_deepseek.backend.comparison_schedule import ComparisonSchedule
from keras_deepseek.backend.keras_private.layers import (
    infers_shapes,
    inner_layers,
)
from keras_deepseek.backend.keras_private.masks import read_mask
from keras_deepseek.backend.keras_private.sample_values import longest_sequence
from keras_deepseek.errors import ExportError
from keras_deepseek.graph.input_kinds import InputKey, InputKinds
from keras_deepseek.graph.ir import Shape, count_operations
from keras_deepseek.graph.known_code import CannotOpenError
from keras_deepseek.graph.model_lock import lock_of
from keras_deepseek.graph.passes import run_passes
from keras_deepseek.graph.passes.contraction import count_multiply_adds
from keras_deepseek.graph.program import Program
from keras_deepseek.graph.size_expressions import with_sizes
from keras_deepseek.graph.sizes import declared_shapes, trace_free
from keras_deepseek.graph.trace import as_symbols, call_model, describe_error, path_of, trace_model
from keras_deepseek.graph.verify import (
    Verifier,
    computes_the_same,
    draw_inputs,
    in_new_thread,
    resized_batches,
)

_log = logging.getLogger(__name__)

_MOST_PLANS = 256
"""The most kinds and shapes of inputs that a model remembers. The least recent is dropped."""
_MOST_SETTINGS = 32
"""The most states of the layers' attributes for which programs are made."""


class _FirstRunError(Exception):
    """The failure of a program in its first run, and the path of the layer at fault if known."""

    def __init__(self, failure: Exception, layer: str | None) -> None:
        super().__init__(str(failure))
        self.failure, self.layer = failure, layer


class Plan:
    """A program for one kind of inputs, and the shapes that fit it.

    Args:
        example: Inputs of known shapes, as tensors or `KerasTensor`s.
        passes: The names of the passes to run.
        whole: Paths of layers to keep whole.
        opens_foreign: As in `trace_model`.
        has_unknown_sizes: True if the inputs have sizes that are not known. Layers of users that
            compute with sizes are then kept whole.
    """

    def __init__(
        self,
        model: keras.Model,
        example: Any,
        *,
        training: bool,
        passes: Collection[str],
        whole: Collection[str] = (),
        opens_foreign: bool = False,
        has_unknown_sizes: bool = False,
    ) -> None:
        shapes = [tuple(tensor.shape) for tensor in tree.flatten(example)]
        declared = declared_shapes(model, shapes)
        with backend.current().compute.outside_compilation():
            graph, self.axes, self.reasons = trace_free(
                functools.partial(
                    trace_model,
                    model,
                    training=training,
                    whole=whole,
                    opens_foreign=opens_foreign,
                    keeps_readers_of_sizes=has_unknown_sizes,
                ),
                example,
                declared,
                functools.partial(computes_the_same, model, example, training=training),
                longest=longest_sequence(model),
                as_operations=True,
            )
            self.size_before = (count_operations(graph), count_multiply_adds(graph, training))
            self.rewrites = run_passes(graph, passes, training)
        self.size = (count_operations(graph), count_multiply_adds(graph, training))
        """The number of operations and of multiply-adds, at the sizes of the trace."""
        self.leaves = graph.leaves
        self.open_axes = [
            axis
            for axis in self.axes
            if any(declared[index][input_axis] is None for index, input_axis in axis.input_axes)
        ]
        """The free axes that the model leaves open; the batch size of an input may be fixed."""
        self.reason = f": {'; '.join(self.reasons)}" if self.reasons else ""
        """The end of a message: why other axes are not free."""
        self.program = Program(graph)
        self.largest_difference: float | None = None
        """That of the outputs from the model's, or `None` before they were compared."""
        self.is_proved = False
        """True after the program was compared at several sizes."""
        self.has_run = False
        """True after the program has run once without an error."""
        self.shapes = shapes
        """The sizes of the trace."""
        self.schedule = ComparisonSchedule()

    def run(self, inputs: Any) -> Any:
        """Runs the program; raises a `_FirstRunError` if it fails before it has ever run."""
        start = time.perf_counter()
        try:
            outputs = self.program(inputs)
        except Exception as error:
            if self.has_run:
                raise
            raise _FirstRunError(error, self.program.failed_layer(error)) from error
        self.has_run = True
        self.schedule.add_run(time.perf_counter() - start)
        return outputs

    def fits(self, shapes: Sequence[Shape]) -> bool:
        """Returns True if the program takes inputs of these shapes."""
        if list(map(len, shapes)) != list(map(len, self.shapes)):
            return False
        input_axes = [axis.input_axes[0] for axis in self.axes]
        sizes = [shapes[index][input_axis] for index, input_axis in input_axes]
        return with_sizes(self.shapes, self.axes, sizes) == list(shapes)


class Plans:
    """The plans of a model, which are made when inputs of a new kind come.

    A program runs in place of the model only for inputs for which `prove` has compared both; it
    does so again now and then. After a difference the model runs for good. Calls and traces exclude
    each other: a call during a trace would get symbols.

    Args:
        example: Example inputs, as `KerasTensor`s. Their sizes stand for unknown ones.
    """

    def __init__(self, model: keras.Model, passes: Collection[str], example: Any) -> None:
        self._model = model
        self._passes = passes
        self.example = example
        self._kinds = InputKinds(model, example)
        self._settings_of_calls: set[Any] = set()
        self._plans = _RecentPlans()
        self._proved = _RecentPlans()
        self._differs = False
        self._warnings: set[str] = set()
        self._lock = lock_of(model)

    def run(self, inputs: Any, training: bool, otherwise: Callable[[], Any]) -> Any:
        """Runs the program for these inputs, or calls `otherwise`, the model itself.

        Inputs of a new kind are compared first. If an operation fails in a program's first run, a
        new program keeps the operation's layer whole. This repeats until a program runs, or until
        no new layer is at fault: then the model runs.
        """
        tensors = [inputs] if hasattr(inputs, "shape") else tree.flatten(inputs)
        if self._differs or infers_shapes() or any(read_mask(x) is not None for x in tensors):
            return self.run_original(otherwise)
        key = self._kinds.key(inputs, tensors, training)
        if self._is_unsteady(key):
            return self.run_original(otherwise)
        whole: set[str] = set()
        if key not in self._proved:
            self._proved.add(key, self._try_to_prove(inputs, training, whole))
        self._compare_again(key, inputs, training)
        while True:
            try:
                with self._lock:
                    plan = self._proved.use(key)
                    return otherwise() if plan is None else plan.run(inputs)
            except _FirstRunError as error:
                if error.layer is None or error.layer in whole:
                    self._warn(describe_error(error.failure))
                    self._proved.add(key, None)  # The model raises the error too, or is right.
                else:
                    whole.add(error.layer)
                    self._proved.add(key, self._try_to_prove(inputs, training, whole))

    def _compare_again(self, key: InputKey, inputs: Any, training: bool) -> None:
        """Compares a program with the model now and then. Inputs in a trace have no numbers."""
        plan = self._proved.get(key)
        is_traced = backend.current().compute.is_traced
        if (
            plan is not None
            and plan.schedule.is_due()
            and not any(map(is_traced, tree.flatten(inputs)))
        ):
            start = time.perf_counter()
            self._proved.add(key, self._try_to_prove(inputs, training, plan=plan))
            plan.schedule.add_comparison(time.perf_counter() - start)

    def _is_unsteady(self, key: InputKey) -> bool:
        """Returns True if the layers' attributes change too often, and then drops all programs."""
        self._settings_of_calls.add(key.settings)
        if len(self._settings_of_calls) <= _MOST_SETTINGS:
            return False
        self._differs = True
        self._warn("attributes of its layers change all the time")
        return True

    def run_original(self, original: Callable[[], Any]) -> Any:
        """Calls the original model, at a time when no other thread traces it."""
        with self._lock:
            return original()

    def has_program(self, inputs: Any, training: bool) -> bool:
        """Returns True if a program runs for these inputs: it was compared with the model."""
        return self._proved.get(self._key(inputs, training)) is not None

    def make(self, inputs: Any, training: bool) -> Plan:
        """Returns a plan for tensors or `KerasTensor`s: a new one, if no other fits.

        Raises `CannotOpenError` if there can be no program for them.
        """
        with self._lock.exclusive():
            return self._make(inputs, training)

    def prove(self, inputs: Any, training: bool) -> Plan:
        """Returns the plan for these inputs after comparing its program with the model.

        Both also get fewer and more rows and steps, along the axes that are free in the program. A
        layer whose operation fails is kept whole.

        Raises:
            CannotOpenError: There can be no program.
            ExportError: The program computes something else. The message names the layer.
        """
        with self._lock.exclusive():
            plan = self._prove(inputs, training, resizes=True)
            plan.is_proved = True
            return plan

    def _make(self, inputs: Any, training: bool, whole: Collection[str] = ()) -> Plan:
        key = self._key(inputs, training)
        plan = None if whole else self._find_fitting(key)
        self._plans.add(key, None)  # It stays if no program can be made.
        if not all(map(_is_dense, tree.flatten(inputs))):
            raise CannotOpenError("gets sparse or ragged inputs")
        if any(0 in shape for shape in key.shapes):  # Operations of TensorFlow fail on it.
            raise CannotOpenError("gets an empty batch")
        if plan is None:
            example = as_symbols(inputs, self._kinds.fill_unknown_sizes(key.shapes))
            plan = Plan(
                self._model,
                example,
                training=training,
                passes=self._passes,
                whole=whole,
                has_unknown_sizes=any(None in shape for shape in key.shapes),
            )
        if not plan.fits(key.shapes):
            raise CannotOpenError(f"fixes a size that its inputs leave open{plan.reason}")
        self._plans.add(key, plan)
        return plan

    def _find_fitting(self, key: InputKey) -> Plan | None:
        for plan_key, plan in self._plans.items():
            if plan is not None and plan_key.kind == key.kind and plan.fits(key.shapes):
                return plan
        return None

    def _prove(
        self,
        inputs: Any,
        training: bool,
        whole: Collection[str] = (),
        *,
        resizes: bool = False,
        plan: Plan | None = None,
        traced: Any = None,
    ) -> Plan:
        """Compares a plan with the model on inputs, which may stand for `traced` ones."""
        if plan is None:
            plan = self._make(inputs if traced is None else traced, training, whole)
        batches = resized_batches(inputs, plan.axes if resizes else [], training=training)
        verifier = Verifier(self._model, batches, training=training)
        try:
            difference = verifier.compare(plan.program)
        except ExportError as error:
            culprit = self._find_layer(verifier, inputs, training, plan)
            raise ExportError(f"{culprit} computes something else: {error}") from error
        except Exception as error:
            layer = plan.program.failed_layer(error)
            if layer is None or layer in whole:
                raise CannotOpenError(f"has an operation that fails: {error}") from error
            whole = {*whole, layer}
            return self._prove(inputs, training, whole, resizes=resizes, traced=traced)
        plan.largest_difference = max(difference, plan.largest_difference or 0.0)
        self._proved.add(self._key(inputs, training), plan)
        return plan

    def _try_to_prove(
        self, inputs: Any, training: bool, whole: Collection[str] = (), plan: Plan | None = None
    ) -> Plan | None:
        """Returns the plan for inputs if it was compared with the model, or `None`.

        While a framework traces the inputs, random ones of their sizes are compared.
        """
        is_traced = any(map(backend.current().compute.is_traced, tree.flatten(inputs)))
        try:
            with self._lock.exclusive():
                if not is_traced:
                    return self._prove(inputs, training, whole, plan=plan)
                plan = self._make(inputs, training, whole)
                if not plan.is_proved:
                    unproved = plan
                    plan = in_new_thread(lambda: self._prove_drawn(inputs, training, unproved))
                return plan
        except ExportError as error:
            self._differs = True
            self._warn(f"a program was dropped for good, since {error}")
        except CannotOpenError as error:
            self._warn(f"it {describe_error(error)}")
        except Exception as error:  # noqa: BLE001 - a layer may raise anything on symbols
            self._warn(describe_error(error))
        return None

    def _prove_drawn(self, inputs: Any, training: bool, plan: Plan) -> Plan:
        """Proves the plan for traced inputs on random ones of their sizes, and returns it.

        Where these are not known, fewer and more rows and steps than the example's are tried too.
        """
        shapes = self._key(inputs, training).shapes
        is_open = any(None in shape for shape in shapes)
        sizes = self._kinds.fill_unknown_sizes(shapes)
        batch = draw_inputs(self._model, inputs, sizes)
        plan = self._prove(batch, training, resizes=is_open, plan=plan, traced=inputs)
        plan.is_proved |= is_open
        return plan

    def _find_layer(
        self, verifier: Verifier, inputs: Any, training: bool, failed_plan: Plan
    ) -> str:
        """Returns the path of the first layer that must be kept whole to make no difference."""
        paths = [path_of(layer) for layer in inner_layers(self._model)]
        try:
            verifier.compare(functools.partial(call_model, self._model, training=training))
        except ExportError:
            return "the model itself, which gives other numbers when it is called again,"

        def make(whole: Collection[str]) -> Plan:
            symbols = as_symbols(inputs)
            return Plan(self._model, symbols, training=training, passes=(), whole=whole)

        def is_equal(number: int) -> bool:
            try:
                verifier.compare(make(paths[:number]).program)
            except ExportError:
                return False
            return True

        number = bisect.bisect_left(range(len(paths) + 1), 1, key=lambda n: int(is_equal(n)))
        if 0 < number <= len(paths):
            return paths[number - 1]
        for path, leaf in make(()).leaves.items():
            if path not in failed_plan.leaves:
                return f"{path}, which now {leaf.reason},"
        return "an operation, a pass or new code"

    def _warn(self, reason: str) -> None:
        if reason not in self._warnings:
            self._warnings.add(reason)
            _log.warning("Model %r runs as it is: %s.", self._model.name, reason.rstrip("."))

    def _key(self, inputs: Any, training: bool) -> InputKey:
        return self._kinds.key(inputs, tree.flatten(inputs), training)


class _RecentPlans(collections.OrderedDict[InputKey, Plan | None]):
    def add(self, key: InputKey, plan: Plan | None) -> None:
        self[key] = plan
        self.move_to_end(key)
        if len(self) > _MOST_PLANS:
            self.popitem(last=False)

    def use(self, key: InputKey) -> Plan | None:
        plan = self.get(key)
        if plan is not None:
            self.move_to_end(key)
        return plan


def _is_dense(tensor: Any) -> bool:
    sparse = ("dense_shape", "nse", "row_splits")  # Of TensorFlow, JAX, and ragged tensors.
    return not any(hasattr(tensor, name) for name in sparse)
