"""The optimized model: the original's variables, run by programs."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_deepseek.backend.export.model_wrapper import ModelWrapper
from keras_deepseek.backend.keras_private.layers import first_call_shapes, functional_graph
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.graph.plans import Plan, Plans

if TYPE_CHECKING:
    from keras_deepseek.graph.report import OptimizationReport

_STEPS = ("compute_loss", "train_step", "test_step", "predict_step")


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
    """Returns a spec for an export, of any batch size."""
    shape = (None, *symbol.shape[1:])
    return keras.InputSpec(shape=shape, dtype=symbol.dtype, name=symbol.name)
