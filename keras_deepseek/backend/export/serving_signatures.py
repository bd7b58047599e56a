"""The options of a SavedModel's signatures beside `serving_default`."""

from dataclasses import dataclass

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.errors import InvalidInputError


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
