"""The two ways that a model runs by programs: as an optimized model, and in a training step."""

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import tree

from keras_deepseek.backend.export.named_model import ModelWrapper
from keras_deepseek.backend.keras_private.layers import (
    first_call_shapes,
    functional_graph,
    infers_shapes,
)
from keras_deepseek.backend.keras_private.sample_values import longest_sequence
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.graph.ir import Leaf, Rewrite, Shape
from keras_deepseek.graph.passes import PASSES
from keras_deepseek.graph.plans import Plan, Plans
from keras_deepseek.graph.trace import TemporaryCall, as_symbols

_STEPS = ("compute_loss", "train_step", "test_step", "predict_step")

_EXAMPLE_ROWS, _EXAMPLE_LENGTH = 32, 128
"""The sizes that stand for unknown ones, where costs are compared."""


@dataclasses.dataclass(frozen=True)
class OptimizationReport:
    """The findings of `graph.optimize`: what it rewrote, kept and measured.

    Args:
        mode: `"inference"` or `"train"`.
        passes: The passes that were kept. `None` if the original is run.
        operations: The number of operations and whole layers, before and after, without those of
            gradients.
        multiply_adds: The multiply-adds of products and convolutions outside of whole layers,
            before and after, at the sizes of the example inputs. With `mode="train"` they include
            the gradients.
        rewrites: The changes that each kept pass made.
        leaves: The layers that were kept whole, by path, and the reasons.
        free_axes: The axes of the inputs whose size may change without a new program, as in
            `"axis 0 of input 0"`. Those that `and` joins must have the same size. Defaults to `()`.
        largest_difference: The largest absolute difference between the outputs. Defaults to `None`:
            nothing was compared.
        speed_up: The original's time over the optimized model's. Defaults to `None`: not measured.
        pass_speed_ups: The time without a pass over the time with it, for each pass measured. The
            entry `"flat program"` is the original's time over that of a program without passes.
            Defaults to an empty dict.
        failure: The pass, the layer and the difference of a verification that failed. Defaults to
            `None`: none failed.

    Example:

    >>> report = OptimizationReport("train", None, (9, 9), (640, 640), {}, {})
    >>> print(report)
    train: 9 operations, now 9
    640 multiply-adds with gradients, now 640
    The original is used: nothing that pays was found.
    """

    mode: str
    passes: tuple[str, ...] | None
    operations: tuple[int, int]
    multiply_adds: tuple[int, int]
    rewrites: dict[str, list[Rewrite]]
    leaves: dict[str, Leaf]
    free_axes: tuple[str, ...] = ()
    largest_difference: float | None = None
    speed_up: float | None = None
    pass_speed_ups: dict[str, float] = dataclasses.field(default_factory=dict)
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as dicts, lists, texts and numbers, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        old_operations, new_operations = self.operations
        old_multiply_adds, new_multiply_adds = self.multiply_adds
        gradients = " with gradients" if self.mode == "train" else ""
        lines = [
            f"{self.mode}: {old_operations:,} operations, now {new_operations:,}",
            f"{old_multiply_adds:,} multiply-adds{gradients}, now {new_multiply_adds:,}",
        ]
        if self.free_axes:
            lines.append(f"of any size: {', '.join(self.free_axes)}")
        if self.failure:
            lines.append(f"The original is used: {self.failure}")
        elif self.passes is None:
            lines.append("The original is used: nothing that pays was found.")
        if self.speed_up is not None:
            lines.append(f"{self.speed_up:.2f} times as fast as the original")
        if self.speed_up is not None and (speed := self.pass_speed_ups.get("flat program")):
            lines.append(f"flat program, without passes ({speed:.2f} times)")
        for name, rewrites in self.rewrites.items():
            speed = self.pass_speed_ups.get(name)
            lines.append(name + (f" ({speed:.2f} times)" if speed else ""))
            lines += _rewrite_lines(rewrites)
        if self.leaves:
            lines.append("kept whole")
        for path, leaf in self.leaves.items():
            lines.append(f"  {path} ({leaf.layer_class}): {leaf.reason}")
        return "\n".join(lines)


def _rewrite_lines(rewrites: Sequence[Rewrite]) -> Iterator[str]:
    """Yields one line of a report for all rewrites of a pass that have the same text."""
    layers_by_text: dict[str, list[str]] = {}
    for rewrite in rewrites:
        layers = ", ".join(filter(None, rewrite.layers))
        layers_by_text.setdefault(rewrite.text, []).append(layers)
    for text, (first, *repetitions) in layers_by_text.items():
        if repetitions:
            yield f"  {text} x {1 + len(repetitions)}, first in {first}"
        else:
            yield f"  {first}: {text}"


@keras.saving.register_keras_serializable("keras_deepseek")
class OptimizedModel(ModelWrapper):
    """A model that computes what another computes, by programs with fewer operations.

    `graph.optimize` makes it. It shares the original's variables, and nothing is computed from
    them ahead: `fit`, `assign` and `load_weights` need no refresh. After a change of the layers
    themselves, such as `enable_lora` or another `rate`, optimize the original again.

    A program is made when inputs of a new kind come: another length, dtype, dtype policy or
    nesting. The batch size is free. Inputs without a program run the original, as do inputs with a
    Keras mask.

    Args:
        original: The model. It must be built.
        example: Its example inputs, as a structure of `KerasTensor`s of known shapes.
        mode: `"inference"` has a program for `training=False` alone, `"train"` for both values.
            Defaults to `"inference"`.
        passes: The names of the passes that rewrite the programs. Defaults to `None`: the original
            is run.

    Call arguments:
        inputs: The inputs of the original.
        training: True for the original's computation in training. Defaults to `None`.

    Returns:
        The outputs of the original, of the same shapes, dtypes and names.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> optimized = OptimizedModel(model, keras.KerasTensor((8, 4)), passes=["identities"])
    >>> optimized.variables == model.variables
    True
    """

    def __init__(
        self,
        original: keras.Model,
        example: Any,
        mode: str = "inference",
        passes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", original.name)
        # The original casts its inputs itself.
        super().__init__(dtype=original.dtype_policy, autocast=False, **kwargs)
        self.original = original
        self.mode = mode
        self.passes = None if passes is None else tuple(passes)
        self.report: OptimizationReport | None = None
        """What was rewritten and measured, or `None` after loading."""
        self._plans = Plans(original, self.passes or (), example)
        self._takes_training = "training" in inspect.signature(original.call).parameters
        self.supports_masking = True  # The original's outputs carry its masks.
        self._build_shapes_dict = first_call_shapes(original)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the outputs of the original."""

        def run_original() -> Any:
            kwargs = {"training": training} if self._takes_training else {}
            return self.original(inputs, **kwargs)

        if self.passes is None or (training and self.mode == "inference"):
            return self._plans.run_original(run_original)
        return self._plans.run(inputs, bool(training), run_original)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the model as `keras.Model.compile` does, and takes the same arguments.

        Raises:
            InvalidInputError: If the class of the original has its own loss or steps, which this
                model would not run.
        """
        model_class = type(self.original)
        steps = [
            step for step in _STEPS if getattr(model_class, step) is not getattr(keras.Model, step)
        ]
        if steps:
            raise InvalidInputError(
                f"{model_class.__name__} overrides {', '.join(steps)}, which its optimized model "
                "does not run. Train the original instead: Trainer(model, ..., "
                "optimize_graph=True)."
            )
        super().compile(*args, **kwargs)

    def save_weights(self, filepath: Any, **kwargs: Any) -> None:
        """Saves the original's weights, as its own `save_weights` does."""
        self.original.save_weights(filepath, **kwargs)

    def load_weights(self, filepath: Any, **kwargs: Any) -> None:
        """Loads weights into the original, as its own `load_weights` does."""
        self.original.load_weights(filepath, **kwargs)

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Exports the model as `keras.Model.export` does. `deploy.Exporter` also verifies it."""
        graph = functional_graph(self.original)
        structure = self._plans.example if graph is None else graph.input
        specs = keras.tree.map_structure(_describe_input, structure)
        super().export(filepath, *args, **{"input_signature": [specs], **kwargs})

    @property
    def _default_save_signature(self) -> None:
        """`None`: `export` has the signature. TensorFlow would make one without dtypes."""

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Prints the summary of the original."""
        self.original.summary(*args, **kwargs)

    def get_layer(self, name: str | None = None, index: int | None = None) -> keras.Layer:
        """Returns a layer of the original."""
        return self.original.get_layer(name, index)

    @property
    def input_shape(self) -> Any:
        """The shapes of the original's inputs."""
        return self.original.input_shape

    @property
    def output_shape(self) -> Any:
        """The shapes of the original's outputs."""
        return self.original.output_shape

    def source(self, training: bool = False) -> str:
        """Returns the program for the example inputs as Python code.

        Args:
            training: True for the program that is run in training. Defaults to `False`.

        Raises:
            InvalidInputError: If there is no such program.
        """
        return self.plan(training).program.source

    def plan(self, training: bool = False) -> Plan:
        """Returns the plan for the example inputs."""
        if self.passes is None or (training and self.mode == "inference"):
            raise InvalidInputError(
                f"{self.name!r} runs the original with training={training}, not a program. "
                "`report` says why nothing was rewritten; mode='train' has programs for training."
            )
        return self._plans.make(self._plans.example, training)

    def prove(self, inputs: Any, *, training: bool = False) -> float:
        """Compares the program for inputs with the original.

        Returns the largest absolute difference of the outputs. Raises an `ExportError` if anything
        differs too much.
        """
        difference = self._plans.prove(inputs, training).largest_difference
        assert difference is not None
        return difference

    def has_program(self, inputs: Any, training: bool = False) -> bool:
        """Returns True if a program runs for these inputs, and False if the original does."""
        return self.passes is not None and self._plans.has_program(inputs, training)

    def get_config(self) -> dict[str, Any]:
        """Returns the original and the decisions. Programs are made again after loading."""
        return {
            "name": self.name,
            "original": keras.saving.serialize_keras_object(self.original),
            # An attribute of a model would be one of Keras's own dicts, sorted by name.
            "example": keras.saving.serialize_keras_object(self._plans.example),
            "mode": self.mode,
            "passes": None if self.passes is None else list(self.passes),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "OptimizedModel":
        """Returns the model of a config."""
        deserialized = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("original", "example")
        }
        return cls(**{**config, **deserialized})


def _describe_input(symbol: keras.KerasTensor) -> keras.InputSpec:
    shape = (None, *symbol.shape[1:])
    return keras.InputSpec(shape=shape, dtype=symbol.dtype, name=symbol.name)


class ProgramCall(TemporaryCall):
    """The `call` of a model by programs that all passes have rewritten.

    Costs alone decide; nothing is timed. The model's own call is run before the model is built, for
    inputs without a program that was compared with it, and while Keras infers shapes.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._plans: Plans | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Makes this object the `call` of the model in a `with` block, then restores its own."""
        with own_attributes(self._model, call=self):
            yield

    def has_program(self, inputs: Any, *, training: bool = False) -> bool:
        """Returns True if a program runs for these inputs, and False if the model does."""
        return self._plans is not None and self._plans.has_program(inputs, training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the outputs of the model for the arguments of its `call`."""
        own_call = functools.partial(type(self._model).call, self._model, *args, **kwargs)
        training = kwargs.pop("training", None)
        # The mask of a dict of inputs is a dict, of `None` where there is none.
        has_others = len(args) != 1 or any(leaf is not None for leaf in tree.flatten(kwargs))
        if has_others or not self._model.built or infers_shapes():
            return own_call()
        with self._lock:
            if self._plans is None:
                self._plans = Plans(self._model, tuple(PASSES), _example(self._model, args[0]))
        return self._plans.run(args[0], bool(training), own_call)


def _example(model: keras.Model, inputs: Any) -> Any:
    length = min(longest_sequence(model) or _EXAMPLE_LENGTH, _EXAMPLE_LENGTH)

    def fill(shape: Any) -> Shape:
        return tuple(size or (length if axis else _EXAMPLE_ROWS) for axis, size in enumerate(shape))

    return as_symbols(inputs, [fill(tensor.shape) for tensor in tree.flatten(inputs)])
