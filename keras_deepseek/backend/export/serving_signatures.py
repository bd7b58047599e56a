"""The signatures of a SavedModel that read serialized `tf.train.Example`s, and their calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.runtimes.saved_model import import_tensorflow
from keras_deepseek.errors import ExportError, InvalidInputError


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


CLASSIFY, REGRESS = "serving_classify", "serving_regress"


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
