"""`optimize`: trace, rewrite, verify and time a model."""

import functools
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import block_states, functional_graph
from keras_deepseek.backend.keras_private.variables import NestedScope
from keras_deepseek.errors import ExportError, InvalidInputError, unknown_name_message
from keras_deepseek.graph.ir import Rewrite
from keras_deepseek.graph.known_code import CannotOpenError, protected_attributes
from keras_deepseek.graph.model_lock import lock_of
from keras_deepseek.graph.optimized_model import OptimizationReport, OptimizedModel
from keras_deepseek.graph.passes import PASSES
from keras_deepseek.graph.plans import Plan
from keras_deepseek.graph.trace import as_symbols, call_model, describe_error
from keras_deepseek.graph.verify import flat_call, time_together

_LEAST_PASS_GAIN = 1.01
_LEAST_GAIN = 1.02

_log = logging.getLogger(__name__)


def optimize(
    model: keras.Model,
    example_inputs: Any,
    *,
    mode: str = "inference",
    measure: bool = True,
    passes: Collection[str] | None = None,
) -> OptimizedModel:
    """Returns a model that computes the same with fewer operations.

    The model is traced to a flat program of Keras operations, which passes rewrite. The outputs of
    the program are compared with the original's, and a pass that makes it no faster is dropped. The
    new model shares the original's variables, and is trained, saved, exported and served like it.

    Choose it for models that read few of the rows that they compute (classifiers by the first
    token, recommenders by the last one), for LoRA, low-rank and linear attention products, and for
    small models on PyTorch without `torch.compile`. A plain transformer block gains nothing.

    Other threads must not call the model itself until this returns: they would get symbols.
    Optimized models of it may be called: they wait.

    Args:
        model: A built model. Nothing in it is changed.
        example_inputs: Inputs as the model takes them, of the sizes that are most common.
        mode: `"inference"` optimizes calls with `training=False`; `"train"` also the training step,
            with its gradients. Defaults to `"inference"`.
        measure: Whether to time each pass, compiled as Keras would compile the model, and to keep
            those that pay. Without it, costs alone decide. Defaults to `True`.
        passes: The names of the passes to try: `"identities"`, `"equal_operations"`,
            `"batch_norm"`, `"unread_rows"`, `"split_sums"`, `"product_order"`, `"attention"`.
            Defaults to `None`, for all.

    Returns:
        An `OptimizedModel`; its `report` says what was done. It runs the original if nothing pays
        or if the comparison fails.

    Raises:
        InvalidInputError: If the model is not built, the inputs do not fit it, or a mode or pass is
            unknown.

    Example:

    >>> import keras, numpy as np
    >>> inputs = keras.Input((6, 8))
    >>> x = keras.layers.MultiHeadAttention(2, 4)(inputs, inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(3)(x[:, 0]))
    >>> fast = optimize(model, np.zeros((2, 6, 8), "float32"), measure=False)
    >>> fast.predict(np.zeros((2, 6, 8), "float32"), verbose=0).shape
    (2, 3)
    """
    if isinstance(model, OptimizedModel):
        model = model.original
    _check(model, mode)
    passes = _pass_names(passes)
    inputs = _as_tensors(model, example_inputs)
    with lock_of(model).exclusive():
        _check_inputs(model, inputs)
        return _Optimization(model, inputs, mode, measure).run(passes)


class _Optimization:
    def __init__(self, model: keras.Model, inputs: Any, mode: str, measure: bool) -> None:
        self._model = model
        self._inputs = inputs
        self._mode = mode
        self._measure = measure
        self._training = mode == "train"
        self._example = as_symbols(inputs)
        self._models: dict[tuple[str, ...] | None, OptimizedModel] = {}

    def run(self, names: Sequence[str]) -> OptimizedModel:
        try:
            plan = self._with(names).plan(self._training)
        except CannotOpenError as error:
            reason = describe_error(error)
            return self._finish(None, failure=f"the model can't be traced: it {reason}")
        tried = [name for name, rewrites in plan.rewrites.items() if rewrites]
        _log.info("%s: rewritten by %s", self._model.name, ", ".join(tried) or "no pass")
        difference, failure = self._verify(tried)
        # Each pass rewrites only what then costs less.
        paying_passes: list[str] | None = tried or None
        times: dict[str, Any] = {}
        if self._measure and failure is None:
            paying_passes, times = self._time(tried)
            if paying_passes is not None and paying_passes != tried:
                difference, failure = self._verify(paying_passes)
        if failure is not None:
            warnings.warn(f"graph.optimize returns the original: {failure}", stacklevel=3)
            return self._finish(None, plan, failure=failure)
        return self._finish(paying_passes, plan, largest_difference=difference, **times)

    def _with(self, passes: Sequence[str] | None) -> OptimizedModel:
        key = None if passes is None else tuple(passes)
        if key not in self._models:  # Each has programs, which take time to make.
            self._models[key] = OptimizedModel(self._model, self._example, self._mode, key)
        return self._models[key]

    def _verify(self, tried: Sequence[str]) -> tuple[float | None, str | None]:
        """Returns the largest difference of outputs, or a sentence on the first pass at fault."""

        def compare(passes: Sequence[str]) -> float:
            model = self._with(passes)
            modes = dict.fromkeys([False, self._training])
            return max(model.prove(self._inputs, training=training) for training in modes)

        try:
            return compare(tried), None
        except (CannotOpenError, ExportError):
            pass
        for number in range(len(tried) + 1):
            try:
                compare(tried[:number])
            except (CannotOpenError, ExportError) as error:
                return None, self._describe_failure(tried[:number], error)
        return None, "the passes together change the outputs, though none of them alone does."

    def _describe_failure(self, passes: Sequence[str], error: Exception) -> str:
        if not passes:
            return f"the traced program differs from the model: {error}"
        rewrites = self._with(passes).plan(self._training).rewrites[passes[-1]]
        layers = dict.fromkeys(layer for rewrite in rewrites for layer in rewrite.layers if layer)
        return f"pass {passes[-1]!r} changes the outputs, at {', '.join(layers)}: {error}"

    def _time(self, tried: Sequence[str]) -> tuple[list[str] | None, dict[str, Any]]:
        """Returns the passes that pay, `None` for the original, and the speed-ups of the report."""
        paying_passes = list(tried)
        function = self._compiled(paying_passes)
        speed_ups = {}
        for name in tried:
            other_passes = [pass_name for pass_name in paying_passes if pass_name != name]
            without = self._compiled(other_passes)
            seconds = time_together([function, without])
            speed_ups[name] = seconds[1] / seconds[0]
            _log.info("%s: %s is worth %.2f", self._model.name, name, speed_ups[name])
            if speed_ups[name] < _LEAST_PASS_GAIN:
                paying_passes, function = other_passes, without
        # With no pass left, `function` is the flat program.
        flat = [self._compiled([])] if paying_passes else []
        seconds = time_together([self._compiled(None), function, *flat])
        speed_up, speed_ups["flat program"] = seconds[0] / seconds[1], seconds[0] / seconds[-1]
        if speed_up < _LEAST_GAIN:
            return None, {"pass_speed_ups": speed_ups, "speed_up": 1.0}
        return paying_passes, {"pass_speed_ups": speed_ups, "speed_up": speed_up}

    def _compiled(self, passes: Sequence[str] | None) -> Any:
        """Returns a call of the model with some passes; `None` stands for the original."""
        call: Callable[[Any], Any] = functools.partial(
            call_model, self._model, training=self._training
        )
        if passes is not None:
            call = self._with(passes).plan(self._training).program
        variables = self._model.trainable_variables if self._training else []
        function = backend.current().compute.compile_function(
            flat_call(call, self._inputs, variables, block_states(self._model)),
            self._model.variables,
            uses_xla=bool(self._model.jit_compile),
            has_gradients=self._training,
        )
        tensors = tree.flatten(self._inputs)
        return lambda: function(*tensors)

    def _finish(
        self, passes: Sequence[str] | None, plan: Plan | None = None, **findings: Any
    ) -> OptimizedModel:
        """Returns the model with some passes and its report. `plan` is that of all passes.

        The `findings` are further arguments of the report.
        """
        model = self._with(passes)
        size_before = size_after = (0, 0) if plan is None else plan.size_before
        rewrites: dict[str, list[Rewrite]] = {}
        if passes is not None:
            plan = model.plan(self._training)
            size_after = plan.size
            rewrites = {name: changes for name, changes in plan.rewrites.items() if changes}
        model.report = OptimizationReport(
            mode=self._mode,
            passes=model.passes,
            operations=(size_before[0], size_after[0]),
            multiply_adds=(size_before[1], size_after[1]),
            rewrites=rewrites,
            leaves=plan.leaves if plan else {},
            free_axes=tuple(map(str, plan.open_axes)) if plan else (),
            **findings,
        )
        return model


def _check(model: Any, mode: str) -> None:
    if not isinstance(model, keras.Model):
        raise InvalidInputError(f"Expected a keras.Model, received {type(model).__name__}.")
    if not model.built:
        raise InvalidInputError(
            f"Model {model.name!r} is not built. Call it once on a batch before optimizing it."
        )
    if mode not in ("inference", "train"):
        raise InvalidInputError(unknown_name_message("mode", mode, ("inference", "train")))


def _pass_names(passes: Any) -> list[str]:
    if isinstance(passes, str) or not isinstance(passes, Iterable | None):
        raise InvalidInputError(f"Expected a list of passes, received {passes!r}.")
    names = list(PASSES if passes is None else passes)
    for name in names:
        if name not in PASSES:
            raise InvalidInputError(unknown_name_message("passes", name, tuple(PASSES)))
    return [name for name in PASSES if name in names]


def _as_tensors(model: keras.Model, inputs: Any) -> Any:
    """Returns example inputs as tensors, and checks what can be without calling the model."""

    def convert(leaf: Any) -> Any:
        expected = "Example inputs must be arrays or tensors with a batch axis"
        if leaf is None or isinstance(leaf, str | bytes | keras.KerasTensor):
            raise InvalidInputError(f"{expected}; received {leaf!r}.")
        try:
            tensor = ops.convert_to_tensor(leaf)
        except Exception as error:
            raise InvalidInputError(f"{expected}; received {leaf!r}: {error}") from error
        if not tuple(tensor.shape):
            raise InvalidInputError(f"{expected}; received the scalar {leaf!r}.")
        if 0 in tuple(tensor.shape):
            raise InvalidInputError(f"{expected}; one is empty, of shape {tuple(tensor.shape)}.")
        return tensor

    tensors = tree.map_structure(convert, inputs)
    graph = functional_graph(model)
    if graph is None:
        return tensors
    declared = graph.input
    names = set(
        declared if isinstance(declared, dict) else (symbol.name for symbol in graph.inputs)
    )
    if isinstance(tensors, dict) and (unknown_names := tensors.keys() - names):
        raise InvalidInputError(
            f"Model {model.name!r} has no inputs {sorted(unknown_names)}; it has {sorted(names)}."
        )
    symbols, examples = tree.flatten(declared), tree.flatten(tensors)
    is_same_nesting = isinstance(declared, dict) == isinstance(tensors, dict)
    if is_same_nesting and len(symbols) == len(examples):
        for symbol, tensor in zip(symbols, examples, strict=True):
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            if "int" in symbol.dtype and "int" not in dtype and dtype != "bool":
                raise InvalidInputError(
                    f"Input {symbol.name!r} takes {symbol.dtype}, but its example is {dtype}."
                )
    return tensors


def _check_inputs(model: keras.Model, inputs: Any) -> None:
    try:
        with NestedScope(), protected_attributes(model):
            model(inputs)
    except Exception as error:
        shapes = tree.map_structure(lambda tensor: tuple(tensor.shape), inputs)
        raise InvalidInputError(
            f"Model {model.name!r} can't be called on the example inputs of shape {shapes}: {error}"
        ) from error
