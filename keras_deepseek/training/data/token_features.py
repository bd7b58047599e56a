"""Reads the token features that `pack_sequences` and `LengthBuckets` take."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError

Features = Mapping[str, Sequence[Any]]


def read_features(features: Features) -> tuple[dict[str, list[Array]], list[int]]:
    """Returns the sequences of each feature as arrays, and their lengths in tokens.

    Each name has one array `(num_tokens, ...)` for each sequence.
    """
    if not isinstance(features, Mapping) or not features:
        raise InvalidInputError(
            "`features` must be a dict of lists of arrays, as in {'token_ids': documents}; "
            f"received {'an empty' if not features else 'a'} {type(features).__name__}."
        )
    arrays = {
        name: [np.asarray(sequence) for sequence in sequences]
        for name, sequences in features.items()
    }
    # An empty list has no dtype of its own: it gets that of the first sequence with tokens.
    for sequences in arrays.values():
        dtypes = [sequence.dtype for sequence in sequences if sequence.size]
        for index, sequence in enumerate(sequences):
            if dtypes and not sequence.size:
                sequences[index] = sequence.astype(dtypes[0])
    counts = {name: len(sequences) for name, sequences in arrays.items()}
    if len(set(counts.values())) > 1 or not next(iter(counts.values())):
        raise InvalidInputError(
            f"Every feature needs the same number of sequences, 1 or more; received {counts}."
        )
    lengths: list[int] = []
    for index, features_of_one in enumerate(zip(*arrays.values(), strict=True)):
        shapes = [sequence.shape for sequence in features_of_one]
        # The shape of a scalar, `()`, is false.
        if not all(shapes) or len({shape[0] for shape in shapes}) > 1:
            raise InvalidInputError(
                f"Sequence {index} must be of shape (num_tokens, ...), with the same number of "
                f"tokens in every feature; received {dict(zip(arrays, shapes, strict=True))}."
            )
        lengths.append(len(features_of_one[0]))
    for name, sequences in arrays.items():
        shapes = sorted({sequence.shape[1:] for sequence in sequences})
        if len(shapes) > 1:
            raise InvalidInputError(
                f"The tokens of {name!r} must be of one shape, received {shapes}."
            )
    return arrays, lengths


def check_padding(padding: Mapping[str, Any] | None, names: Collection[str]) -> dict[str, Any]:
    """Checks and returns the padding value of each feature."""
    unknown = sorted(set(padding or ()) - set(names))
    if unknown:
        raise InvalidInputError(
            f"`padding` has values for {unknown}, but the features are {sorted(names)}."
        )
    return dict(padding or {})
