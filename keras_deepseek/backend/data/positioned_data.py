"""Training data for `model.fit` that can tell and restore their position."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.data.batch_stream import BatchStream
from keras_deepseek.backend.keras_private.datasets import DataAdapter, batch_specs


class PositionedData(DataAdapter):
    """A stream of batches, wrapped as a dataset that `model.fit` takes.

    Keras is told no number of batches, so that it never runs out of them and never begins a pass
    itself. The epochs of the stream end those of Keras.
    """

    num_batches = None
    batch_size = None
    has_partial_batch = None
    partial_batch_size = None

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream
        self._batch: dict[str, Any] = {}

    def open(self) -> None:
        """Reads the shapes of the first two batches for `symbolic_batch`."""
        batches = self.stream.peek(2)
        if len({_count_leaves(batch) for batch in batches}) > 1:
            # For example if only some have weights. Only TensorFlow rejects that.
            batches = batches[:1]
        specs = keras.tree.flatten(batch_specs(batches))
        self._batch = {
            # In the order of `flatten`: that of `map_structure` differs on PyTorch.
            "structure": keras.tree.pack_sequence_as(batches[0], list(range(len(specs)))),
            "leaves": [
                None
                if spec is None
                else {
                    # A process without rows computes on dummy rows.
                    "first": [max(leaf.shape[0], 1), *leaf.shape[1:]],
                    "all": list(spec.shape),  # `None` where the two batches differ.
                    "dtype": spec.dtype,
                    "sparse": spec.sparse,
                }
                for leaf, spec in zip(keras.tree.flatten(batches[0]), specs, strict=True)
            ],
        }

    def allow_other_sizes(self, inputs: Sequence[keras.KerasTensor]) -> None:
        """Allows later batches to have other sizes than the first, where the model accepts any.

        TensorFlow traces for the sizes of the specs, and the two first batches may be equal by
        chance. Where the inputs may have any size, so may targets and weights of the same length.
        """
        x, *targets_and_weights = keras.utils.unpack_x_y_sample_weight(self._batch["structure"])
        named = {tensor.name: tensor for tensor in inputs}
        indices = keras.tree.flatten(x)
        if isinstance(x, dict) and set(x) <= set(named):
            inputs = [named[name] for name in sorted(x)]
            indices = [x[name] for name in sorted(x)]
        if len(indices) != len(inputs):  # The model will report the error.
            return
        free: set[int] = set()
        for index, tensor in zip(indices, inputs, strict=True):
            sizes = self._sizes(index)
            free.update(
                size
                for size, static_size in zip(sizes[1:], tensor.shape[1:], strict=False)
                if static_size is None
            )
            self._open_sizes(index, [static_size is None for static_size in tensor.shape])
        for index in keras.tree.flatten(targets_and_weights):
            if index is not None:
                self._open_sizes(index, [size in free for size in self._sizes(index)])

    def _sizes(self, index: int) -> list[int]:
        """Returns the axis sizes of one array of the first batch."""
        leaf = self._batch["leaves"][index]
        return leaf["first"] if leaf else []

    def _open_sizes(self, index: int, are_open: Sequence[bool]) -> None:
        """Sets the marked axes of one array to `None` in `symbolic_batch("all")`."""
        leaf = self._batch["leaves"][index]
        for axis, is_open in enumerate(are_open):
            if leaf and is_open and 0 < axis < len(leaf["all"]):
                leaf["all"][axis] = None

    def read_position(self, done: int = 0) -> dict[str, Any]:
        """Returns the position in the data after `done` batches of the epoch."""
        return {**self.stream.read_position(done), "batch": self._batch}

    def go_to(self, position: dict[str, Any]) -> None:
        """Moves the data to a position of `read_position`; they must be unread in this process."""
        self.stream.go_to(position)
        self._batch = position["batch"]

    def symbolic_batch(self, sizes: str = "first") -> Any:
        """Returns `KerasTensor`s of the shapes of the very first batch, at any position.

        With `sizes="all"`, a size that differed in the second batch is `None`. A step that was
        traced for other shapes may round differently, so the shapes are part of the position.
        """

        def tensor(index: int) -> keras.KerasTensor | None:
            leaf = self._batch["leaves"][index]
            return leaf and keras.KerasTensor(leaf[sizes], leaf["dtype"], sparse=leaf["sparse"])

        return keras.tree.map_structure(tensor, self._batch["structure"])

    def get_numpy_iterator(self) -> Iterable[Any]:
        return self.stream.batches()

    def get_jax_iterator(self) -> Iterable[Any]:
        return backend.current().step.feed_batches(self.stream.batches, None)

    def get_torch_dataloader(self) -> Iterable[Any]:
        return backend.current().step.feed_batches(self.stream.batches, None)

    def get_tf_dataset(self) -> Iterable[Any]:
        specs = self.stream.source.specs
        if specs is None:
            specs = self.symbolic_batch("all")
        return backend.current().step.feed_batches(self.stream.batches, specs)


def _count_leaves(batch: Any) -> int:
    """Returns the number of arrays in a batch, without `None`."""
    return sum(leaf is not None for leaf in keras.tree.flatten(batch))
