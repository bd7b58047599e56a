"""Writes a Keras model on TensorFlow or JAX as a SavedModel, by Keras's export archive."""

import os
from typing import Any

import keras

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.serving_signatures import CLASSIFY, REGRESS, ServingSignatures
from keras_deepseek.backend.runtimes.saved_model import import_tensorflow
from keras_deepseek.errors import NotSupportedError

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
    # The model uses other resources, such as a table. Finding them takes long.
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
