"""What a SavedModel offers TF Serving's clients beside `serving_default`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingSignatures:
    """The further signatures of a SavedModel, which read serialized `tf.train.Example`s.

    Args:
        classes: tuple of strings. The names of the classes that `serving_classify` gives scores of,
            in the order of the model's output. Defaults to `None`: there is no such signature.
        regresses: boolean. Whether there is a `serving_regress`, of an output of one value a row.
            Defaults to `False`.
    """

    classes: tuple[str, ...] | None = None
    regresses: bool = False

    def __bool__(self) -> bool:
        return self.classes is not None or self.regresses
