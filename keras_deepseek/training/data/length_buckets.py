"""Batches of sequences of similar length, with little padding and few shapes to compile for."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.data.token_features import Features, check_padding, read_features

SHORTEST = 16
"""The first of the default boundaries, in tokens."""

_ALONE = "features"  # The name of a feature that came without one.


class LengthBuckets(keras.utils.PyDataset):
    """Sequences in batches by length, each padded to the length of its bucket.

    Choose it over `pack_sequences` if the model takes no attention mask by document, or if each
    sequence has one target. A model sees the lengths of the boundaries only, so XLA compiles one
    program for each of them. With `batch_size`, sequences that do not fill a batch join the next
    bucket, so all batches but the last have the same size. With `tokens_per_batch`, batches of
    short sequences have more of them, so each step takes about the same work. Give it to
    `Trainer.fit` or `keras.Model.fit` as any other `keras.utils.PyDataset`.

    Args:
        features: list of arrays, one for each sequence, of shape `(num_tokens, ...)`; or a dict of
            such lists by the names of the model's inputs, all of the same lengths.
        targets: sequence of arrays or numbers, or `None`. The target of each sequence. If each
            target has as many entries as its sequence has tokens, targets are padded too. Defaults
            to `None`.
        boundaries: sequence of integers. The lengths of the buckets, ascending. The last must not
            be below the longest sequence. Defaults to `None`: powers of two from 16 to that length.
        batch_size: integer. The number of sequences in a batch. Defaults to `None`.
        tokens_per_batch: integer. The number of tokens in a batch, including padding, in place of
            `batch_size`. Defaults to `None`.
        padding: dict. The padding value of a feature by its name, `"features"` if it has no name,
            or `"targets"` for the targets. Defaults to `None`: 0.
        shuffle: boolean. True to shuffle sequences and batches in each epoch. Defaults to `True`.
        seed: integer. The seed of the shuffling: one seed gives one order. Defaults to `0`.
        **kwargs: Arguments of `keras.utils.PyDataset`, such as `workers`.

    Raises:
        InvalidInputError: There is no sequence, lengths differ between features, boundaries do not
            ascend or end below the longest sequence, or not exactly one of `batch_size` and
            `tokens_per_batch` is given.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.training import LengthBuckets
    >>> texts = [np.arange(1, n) for n in (4, 9, 3, 8, 30)]
    >>> data = LengthBuckets(texts, [0, 1, 0, 1, 1], tokens_per_batch=32)
    >>> sorted((x.shape, y.shape) for x, y in map(data.__getitem__, range(len(data))))
    [((1, 32), (1,)), ((2, 16), (2,)), ((2, 16), (2,))]
    """

    def __init__(
        self,
        features: Features | Sequence[Any],
        targets: Sequence[Any] | None = None,
        *,
        boundaries: Sequence[int] | None = None,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        padding: Mapping[str, Any] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._has_names = isinstance(features, Mapping)
        named = features if isinstance(features, Mapping) else {_ALONE: features}
        self._features, self._lengths = read_features(named)
        self._targets = _read_targets(targets, len(self._lengths))
        self._is_target_a_sequence = targets is not None and all(
            target.shape[:1] == (length,)
            for target, length in zip(self._targets, self._lengths, strict=True)
        )
        self._padding = check_padding(padding, [*self._features, "targets"])
        self.boundaries = _check_boundaries(boundaries, max(self._lengths))
        self._sizes = _count_sequences(self.boundaries, batch_size, tokens_per_batch)
        self.shuffle = shuffle
        self.seed = check_integer("seed", seed, minimum=0)
        self._epoch = 0
        self._batches = self._draw()

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        length, chosen = self._batches[index]
        batch: Any = {
            name: _pad([sequences[i] for i in chosen], length, self._padding.get(name, 0))
            for name, sequences in self._features.items()
        }
        if not self._has_names:
            batch = batch[_ALONE]
        if not self._targets:
            return (batch,)
        targets = [self._targets[i] for i in chosen]
        if self._is_target_a_sequence:
            return batch, _pad(targets, length, self._padding.get("targets", 0))
        return batch, np.stack(targets)

    def on_epoch_end(self) -> None:
        self._epoch += 1
        if self.shuffle:
            self._batches = self._draw()

    def _draw(self) -> list[tuple[int, list[int]]]:
        """Draws the batches of an epoch: the length of each, and its sequences' indices."""
        rng = np.random.default_rng((self.seed, self._epoch))
        order = np.arange(len(self._lengths))
        if self.shuffle:
            rng.shuffle(order)
        buckets: dict[int, list[int]] = {length: [] for length in self.boundaries}
        for i in order:
            buckets[self._find_bucket(int(i))].append(int(i))
        batches = [
            (max(map(self._find_bucket, members)), members) for members in self._fill(buckets)
        ]
        if self.shuffle:
            rng.shuffle(batches)
        # If the first two batches have the same length, Keras on TensorFlow expects it for all.
        other = next((i for i, batch in enumerate(batches) if batch[0] != batches[0][0]), None)
        if other is not None:
            batches[1], batches[other] = batches[other], batches[1]
        return batches

    def _find_bucket(self, sequence: int) -> int:
        return self.boundaries[bisect_left(self.boundaries, self._lengths[sequence])]

    def _fill(self, buckets: dict[int, list[int]]) -> list[list[int]]:
        """Divides the sequences of each bucket into batches of sequence indices.

        A remainder that fills no batch moves to the next bucket.
        """
        batches: list[list[int]] = []
        carried: list[int] = []
        for length, longer in zip(self.boundaries, [*self.boundaries[1:], None], strict=True):
            members, size = carried + buckets[length], self._sizes[length]
            # The rest moves up only to a bucket whose batches have as many sequences.
            moves_up = longer is not None and self._sizes[longer] == size
            end = len(members) - len(members) % size if moves_up else len(members)
            batches += [members[i : min(i + size, end)] for i in range(0, end, size)]
            carried = members[end:]
        return batches


def _read_targets(targets: Sequence[Any] | None, count: int) -> list[Array]:
    arrays = [np.asarray(target) for target in (() if targets is None else targets)]
    if targets is not None and len(arrays) != count:
        raise InvalidInputError(
            f"`targets` must have one entry for each of the {count} sequences; received "
            f"{len(arrays)}."
        )
    return arrays


def _check_boundaries(boundaries: Sequence[int] | None, longest: int) -> list[int]:
    if boundaries is None:
        boundaries = [SHORTEST]
        while boundaries[-1] < longest:
            boundaries.append(2 * boundaries[-1])
    lengths = [check_integer(f"boundaries[{i}]", size) for i, size in enumerate(boundaries)]
    ascend = all(a < b for a, b in pairwise(lengths))
    if not lengths or not ascend or lengths[-1] < longest:
        raise InvalidInputError(
            f"`boundaries` must ascend, and end at {longest} or more, the length of "
            f"the longest sequence; received {lengths}."
        )
    return lengths


def _count_sequences(
    boundaries: list[int], batch_size: int | None, tokens_per_batch: int | None
) -> dict[int, int]:
    """Returns the number of sequences in a batch for each boundary."""
    if (batch_size is None) == (tokens_per_batch is None):
        raise InvalidInputError(
            "Pass either `batch_size` or `tokens_per_batch`; received "
            f"batch_size={batch_size!r} and tokens_per_batch={tokens_per_batch!r}."
        )
    if batch_size is not None:
        return dict.fromkeys(boundaries, check_integer("batch_size", batch_size))
    if check_integer("tokens_per_batch", tokens_per_batch) < boundaries[-1]:
        raise InvalidInputError(
            f"`tokens_per_batch` must be at least {boundaries[-1]}, the largest boundary, received "
            f"{tokens_per_batch}."
        )
    return {length: (tokens_per_batch or 0) // length for length in boundaries}


def _pad(sequences: list[Array], length: int, padding: Any) -> Array:
    batch = np.full(
        (len(sequences), length, *sequences[0].shape[1:]), padding, np.result_type(*sequences)
    )
    for row, sequence in zip(batch, sequences, strict=True):
        row[: len(sequence)] = sequence
    return batch
