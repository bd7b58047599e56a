"""A SavedModel from a Keras model, by Keras's own archive: on TensorFlow, and on JAX beside it."""

import os
from typing import Any

import keras

from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.backend.saved_model import import_tensorflow


def save_as_saved_model(model: NamedModel, path: str | os.PathLike[str], **options: Any) -> None:
    """Writes a model, on TensorFlow or JAX, with a `serving_default` signature of its names.

    Args:
        model: `NamedModel`.
        path: An empty folder.
        **options: Arguments of Keras's `ExportArchive.add_endpoint`.

    Raises:
        MissingExtraError: TensorFlow is not installed.
    """
    tf = import_tensorflow("to write a SavedModel")
    specs = {
        spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name)
        for spec in model.signature.inputs
    }
    archive = keras.export.ExportArchive()
    archive.track(model.model)
    archive.add_endpoint("serving_default", model.__call__, [specs], **options)
    # What serves needs no gradients, and a loop whose length depends on the data may have none.
    without_gradients = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(str(path), without_gradients, verbose=False)
