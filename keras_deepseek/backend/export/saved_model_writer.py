"""SavedModels, written by Keras's export archive, and their signatures of serialized examples."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.runtimes.saved_model import import_tensorflow
from keras_deepseek.errors import ExportError, InvalidInputError, NotSupportedError

CLASSIFY, REGRESS = "serving_classify", "serving_regress"


@dataclass(frozen=True)
class ServingSignatures:
    """The further signatures of a SavedModel, which read serialized `tf.train.Example`s.

    Args:
        classes: The names of the classes for `serving_classify`, in the order of the model's
            output. `None`: no such signature.
        regresses: True to write `serving_regress`, for an output of one value a row.
    """

    classes: tuple[str, ...] | None = None
    regresses: bool = False

    def __bool__(self) -> bool:
        return self.classes is not None or self.regresses

    def check(self, signature: Signature) -> None:
        """Raises an error if a model can't read examples, or its output doesn't fit a signature."""
        free = [spec for spec in signature.inputs if None in spec.shape[1:]]
        if self and free:
            raise InvalidInputError(
                "A tf.train.Example holds features of a fixed size, but these inputs have free "
                f"sizes: {'; '.join(map(str, free))}. Leave classify and regress out."
            )
        widths = [(len(self.classes), "classes")] if self.classes is not None else []
        widths += [(1, "value a row")] if self.regresses else []
        (output, *extra_outputs) = signature.outputs
        for width, kind in widths:
            if extra_outputs or output.shape[1:] != (width,):
                raise InvalidInputError(
                    f"For {width} {kind}, a model must have one output, of shape (any, {width}); "
                    f"received {'; '.join(map(str, signature.outputs))}."
                )


def classify(loaded: Any, rows: Mapping[str, Array], classes: Sequence[str] | None) -> Array:
    """Returns the score of each class for each row, by the classify signature of a SavedModel."""
    outputs = _call(loaded, CLASSIFY, rows)
    scores, names = outputs["scores"], outputs["classes"]
    class_names = [str(index) for index in range(scores.shape[-1])] if classes is None else classes
    encoded = np.array([name.encode() for name in class_names], dtype=object)
    if names.shape != (len(scores), len(encoded)) or scores.shape != names.shape:
        raise ExportError(
            f"{CLASSIFY} gives classes of shape {names.shape} and scores of shape {scores.shape}; "
            f"expected {(len(scores), len(encoded))}."
        )
    ordered = np.empty_like(scores)
    for column, name in enumerate(encoded):
        is_named = names == name
        if not (is_named.sum(axis=1) == 1).all():
            raise ExportError(
                f"{CLASSIFY} does not name the class {class_names[column]!r} once in each row."
            )
        ordered[:, column] = scores[is_named]
    return ordered


def regress(loaded: Any, rows: Mapping[str, Array]) -> Array:
    """Returns one value for each row, by the `serving_regress` signature of a SavedModel."""
    return _call(loaded, REGRESS, rows)["outputs"]


def _call(loaded: Any, name: str, rows: Mapping[str, Array]) -> dict[str, Array]:
    tf = import_tensorflow("to run a SavedModel")
    if name not in loaded.signatures:
        raise ExportError(f"the SavedModel has no signature {name!r}.")
    outputs = loaded.signatures[name](inputs=tf.constant(serialize_examples(rows), tf.string))
    return {key: tensor.numpy() for key, tensor in outputs.items()}


def serialize_examples(rows: Mapping[str, Array]) -> list[bytes]:
    """Returns each row of a batch as a serialized `tf.train.Example`."""
    tf = import_tensorflow("to make examples")

    def feature(values: Array) -> Any:
        if values.dtype.kind in "biu":
            integers = map(int, values.ravel().tolist())  # `Int64List` takes no booleans.
            return tf.train.Feature(int64_list=tf.train.Int64List(value=integers))
        # An example has no other float.
        return tf.train.Feature(
            float_list=tf.train.FloatList(value=values.ravel().astype("float32"))
        )

    return [
        tf.train.Example(
            features=tf.train.Features(
                feature={name: feature(array[row]) for name, array in rows.items()}
            )
        ).SerializeToString()
        for row in range(len(next(iter(rows.values()))))
    ]


_METHODS = {CLASSIFY: "tensorflow/serving/classify", REGRESS: "tensorflow/serving/regress"}


def save_as_saved_model(
    model: NamedModel,
    path: str | os.PathLike[str],
    signatures: ServingSignatures,
    **options: Any,
) -> None:
    """Writes a model as a SavedModel with a `serving_default` signature, in an empty folder.

    `options` are arguments of Keras's `ExportArchive.add_endpoint`. `signatures` can be written
    from TensorFlow only.
    """
    tf = import_tensorflow("to write a SavedModel")
    specs = {
        spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name)
        for spec in model.signature.inputs
    }
    archive = keras.export.ExportArchive()
    examples = _ExampleSignatures(model, signatures)
    if keras.backend.backend() == "tensorflow":
        functions = {"serving_default": (model.trace, specs)}
        spec = tf.TensorSpec([None], tf.string, name="inputs")
        functions |= {name: (function, spec) for name, function in examples.functions().items()}
        for name, (function, spec) in functions.items():
            archive.add_endpoint(name, _trace_once(function, spec))
    else:
        archive.track(model.model)
        archive.add_endpoint("serving_default", model.trace, [specs], **options)
    # Serving needs no gradients, and a loop of data-dependent length may have none.
    without_gradients = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        archive.write_out(str(path), without_gradients, verbose=False)
    # The model uses resources besides its variables, such as a table. Tracking the model finds
    # them, which takes long, so it is done only here.
    except AssertionError:
        archive.track(model.model)
        archive.write_out(str(path), without_gradients, verbose=False)
    if signatures:
        _name_methods(str(path), list(examples.functions()))


def _trace_once(function: Any, spec: Any) -> Any:
    """Returns a traced TensorFlow function that saving does not trace again."""
    tf = import_tensorflow("to write a SavedModel")

    def traced(function: Any) -> Any:
        return tf.function(function, input_signature=[spec], autograph=False)

    inner = traced(function).get_concrete_function()

    def call(inputs: Any) -> Any:
        return inner(inputs)

    outer = traced(call)
    outer.get_concrete_function()  # Keras expects a traced function.
    return outer


class _ExampleSignatures:
    """SavedModel functions that take serialized examples, for TF Serving's Classify and Regress."""

    def __init__(self, model: NamedModel, signatures: ServingSignatures) -> None:
        self._model = model
        self._signatures = signatures
        if signatures:
            self._check()

    def functions(self) -> dict[str, Any]:
        """Returns the TensorFlow functions by the names of their signatures."""
        functions = {}
        if self._signatures.classes is not None:
            functions[CLASSIFY] = self._classify
        if self._signatures.regresses:
            functions[REGRESS] = self._regress
        return functions

    def _check(self) -> None:
        if keras.backend.backend() != "tensorflow":
            raise NotSupportedError(
                "Signatures that read serialized examples are written from TensorFlow only. Set "
                "KERAS_BACKEND=tensorflow, or leave classify and regress out."
            )
        self._signatures.check(self._model.signature)

    def _classify(self, inputs: Any) -> dict[str, Any]:
        tf = import_tensorflow("to classify")
        scores = self._run(inputs)
        classes = tf.constant(self._signatures.classes)[None]
        return {"classes": tf.repeat(classes, tf.shape(scores)[0], axis=0), "scores": scores}

    def _regress(self, inputs: Any) -> dict[str, Any]:
        tf = import_tensorflow("to regress")
        return {"outputs": tf.squeeze(self._run(inputs), axis=1)}

    def _run(self, examples: Any) -> Any:
        """Runs the model on serialized examples, and returns its output in float32."""
        tf = import_tensorflow("to read examples")
        specs = self._model.signature.inputs
        stored = {
            spec.name: tf.float32 if tf.as_dtype(spec.dtype).is_floating else tf.int64
            for spec in specs
        }
        features = {
            spec.name: tf.io.FixedLenFeature(spec.shape[1:], stored[spec.name]) for spec in specs
        }
        parsed = tf.io.parse_example(examples, features)
        rows = {spec.name: tf.cast(parsed[spec.name], spec.dtype) for spec in specs}
        (output,) = self._model.trace(rows).values()
        return tf.cast(output, tf.float32)


def _name_methods(path: str, names: list[str]) -> None:
    """Sets the method names of signatures to Classify and Regress; Keras sets Predict for all."""
    tf = import_tensorflow("to write a SavedModel")
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(path)
    for name in names:
        updater.replace_method_name(name, _METHODS[name], tags="serve")
    updater.save()
