"""Training data of each kind, as batches from any position of any pass.

These sources do what Keras's adapters do with each kind of data, but can begin a pass in its
middle. `BatchStream` reads them.
"""

import itertools
import sys
from collections.abc import Iterator
from types import GeneratorType
from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.keras_private.datasets import (
    array_slices,
    copied_batches,
    find_data_adapter,
    numpy_batches,
    py_dataset_batches,
)
from keras_deepseek.errors import InvalidInputError, NotSupportedError


class BatchSource:
    """The base class of training data that can be read in several passes.

    A pass goes through the data once.
    """

    kind: str
    num_batches: int | None = None
    """The number of batches of a pass, or `None` if it is unknown."""

    is_length_exact = False
    """True if a pass surely ends after `num_batches`. Otherwise only asking for one more batch
    tells."""

    can_repeat = True
    """True if there is a pass after the first."""

    uses_shared_generators = True
    """True if the batches depend on the global random number generators of the process."""

    specs: Any = None
    """The shapes and dtypes of the batches as TensorFlow specs, or `None` if the data don't say."""

    share: tuple[int, int] = (0, 1)
    """The rows of each batch that this process takes: the index of the first one, and the step."""

    def batches(self, index: int, first: int) -> Iterator[Any]:
        """Returns an iterator over the batches of pass `index`, from batch `first` on."""
        raise NotImplementedError

    def own_rows(self, index: int, first: int) -> Iterator[Any]:
        """Returns an iterator over this process's rows of each batch of `batches`.

        The last batch may have none.
        """
        batches = self.batches(index, first)
        return batches if self.share[1] == 1 else _take_rows(batches, *self.share)

    def end_pass(self) -> None:
        """Ends a pass over the data, after its last batch was used."""

    def read_state(self) -> Any:
        """Returns the data's state before the next pass, or `None` if it is always the same."""

    def go_to_pass(self, index: int, state: Any) -> None:
        """Puts fresh data into the state in which pass `index` begins."""


def open_batch_source(
    x: Any,
    *,
    shuffle: bool | str | None,
    seed: int,
    class_weight: Any,
    share: tuple[int, int] = (0, 1),
    **arguments: Any,
) -> BatchSource:
    """Returns the batch source for training data and arguments of `keras.Model.fit`.

    The order of pass `p` is a function of `(seed, p)`. `share` is the first row of each batch that
    this process takes, and the step to the next. `shuffle=None` is the default of the kind of data.
    """
    arguments["class_weight"] = class_weight
    source = _open(x, shuffle, seed, arguments)
    source.share = share
    return source


def _open(x: Any, shuffle: bool | str | None, seed: int, arguments: dict[str, Any]) -> BatchSource:
    """Returns the batch source for a kind of training data, such as arrays or a `PyDataset`."""
    if isinstance(x, GeneratorType):  # Keras's adapter would draw the first batches.
        return _Generator(x, arguments)
    kind, adapter = find_data_adapter(x, shuffle=bool(shuffle), **arguments)
    shuffle = True if shuffle is None else shuffle
    if kind == "arrays":
        return _Arrays(adapter, shuffle, seed)
    if kind == "PyDataset":
        return _PyDataset(x, bool(shuffle), seed, arguments["class_weight"])
    if kind == "DataLoader":
        return _DataLoader(x, adapter)
    if kind in ("tf.data", "Grain"):
        return _Dataset(kind, adapter)
    raise NotSupportedError(
        f"A training by steps or with checkpoints can't know its position in a {type(x).__name__}. "
        "Give arrays, a PyDataset, tf.data, a torch DataLoader, a Grain dataset or a generator; or "
        "train by fit, without a checkpoint_dir."
    )


class _Arrays(BatchSource):
    kind = "arrays"
    is_length_exact = True
    uses_shared_generators = False

    def __init__(self, adapter: Any, shuffle: bool | str, seed: int) -> None:
        self._num_rows, self._take = array_slices(adapter)
        self._batch_size = adapter.batch_size
        self._shuffle = shuffle
        self._seed = seed
        self.num_batches = adapter.num_batches

    def own_rows(self, index: int, first: int) -> Iterator[Any]:
        return self.batches(index, first)  # It reads only those rows.

    def batches(self, index: int, first: int) -> Iterator[Any]:
        order = np.arange(self._num_rows)
        generator = np.random.default_rng((self._seed, index))
        if self._shuffle == "batch":
            for start in range(0, self._num_rows, self._batch_size):
                generator.shuffle(order[start : start + self._batch_size])
        elif self._shuffle:
            generator.shuffle(order)
        for start in range(first * self._batch_size, self._num_rows, self._batch_size):
            rows = order[start : start + self._batch_size]
            yield self._take(rows[self.share[0] :: self.share[1]])


class _PyDataset(BatchSource):
    kind = "PyDataset"
    is_length_exact = True

    def __init__(
        self, dataset: keras.utils.PyDataset, shuffle: bool, seed: int, class_weight: Any
    ) -> None:
        self._dataset = dataset
        self._shuffle = shuffle
        self._seed = seed
        self._class_weight = class_weight
        self._keeps_state = hasattr(dataset, "get_state") and hasattr(dataset, "set_state")
        self.num_batches = dataset.num_batches

    def batches(self, index: int, first: int) -> Iterator[Any]:
        self._dataset.on_epoch_begin()
        self.num_batches = self._dataset.num_batches  # It may differ from pass to pass.
        order = None
        if self.num_batches is not None:
            order = np.arange(self.num_batches)
            if self._shuffle:
                np.random.default_rng((self._seed, index)).shuffle(order)
        yield from py_dataset_batches(_Reordered(self._dataset, order, first), self._class_weight)

    def end_pass(self) -> None:
        self._dataset.on_epoch_end()

    def read_state(self) -> Any:
        return self._dataset.get_state() if self._keeps_state else None

    def go_to_pass(self, index: int, state: Any) -> None:
        if self._keeps_state and state is not None:
            self._dataset.set_state(state)
            return
        for _ in range(index):  # Repeats what the dataset does between epochs.
            self._dataset.on_epoch_begin()
            self._dataset.on_epoch_end()


class _Reordered(keras.utils.PyDataset):
    """A `PyDataset` with the batches of another one, in a given order and from a given batch on."""

    def __init__(self, dataset: keras.utils.PyDataset, order: Any, first: int) -> None:
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset = dataset
        self._order = order
        self._first = first

    @property
    def num_batches(self) -> int | None:
        return None if self._order is None else len(self._order) - self._first

    def __getitem__(self, index: int) -> Any:
        index += self._first
        return self._dataset[index if self._order is None else int(self._order[index])]


class _Generator(BatchSource):
    kind = "generator"
    can_repeat = False

    def __init__(self, generator: Iterator[Any], arguments: dict[str, Any]) -> None:
        self._generator = generator
        for name in ("y", "sample_weight", "class_weight"):
            if arguments[name] is not None:
                raise InvalidInputError(
                    f"Received `{name}` together with a generator. Let the generator yield tuples "
                    "(inputs, targets) or (inputs, targets, sample_weights)."
                )

    def batches(self, index: int, first: int) -> Iterator[Any]:
        if index:
            raise InvalidInputError(
                "The generator has ended and can't be repeated. Let it yield batches for ever and "
                "give steps_per_epoch, or give a PyDataset."
            )
        return _skip(copied_batches(map(_check_tuple, self._generator)), first)


class _Dataset(BatchSource):
    """The batch source for `tf.data` and Grain datasets.

    To begin in the middle of a pass, the batches before it are skipped.
    """

    def __init__(self, kind: str, adapter: Any) -> None:
        self.kind = kind
        self._adapter = adapter
        self._is_tensorflow = kind == "tf.data"
        if self._is_tensorflow:
            self.num_batches = adapter.num_batches
            self.specs = adapter.get_tf_dataset().element_spec

    def batches(self, index: int, first: int) -> Iterator[Any]:
        if self._is_tensorflow and keras.backend.backend() == "tensorflow":
            dataset = self._adapter.get_tf_dataset()
        else:
            dataset = self._adapter.get_numpy_iterator()
        return _skip(iter(dataset), first)

    def go_to_pass(self, index: int, state: Any) -> None:
        if self._is_tensorflow:
            # The order of `shuffle` depends on how many iterators were made.
            for _ in range(index):
                iter(self._adapter.get_tf_dataset())


class _DataLoader(BatchSource):
    """The batch source for PyTorch's `DataLoader`, which draws its order when a pass begins."""

    kind = "DataLoader"

    def __init__(self, loader: Any, adapter: Any) -> None:
        self._loader = loader
        self.num_batches = adapter.num_batches
        # On PyTorch, tensors are passed on, since they may be in pinned memory.
        self._is_own = keras.backend.backend() == "torch"

    def batches(self, index: int, first: int) -> Iterator[Any]:
        batches = self._go_through() if self._is_own else numpy_batches(self._go_through())
        return _skip(batches, first)

    def _go_through(self) -> Iterator[Any]:
        for batch in self._loader:  # `default_collate` turns tuples into lists.
            yield tuple(batch) if isinstance(batch, list) else batch

    def read_state(self) -> Any:
        return [generator.get_state().numpy().copy() for generator in self._generators()]

    def go_to_pass(self, index: int, state: Any) -> None:
        for generator, value in zip(self._generators(), state or (), strict=False):
            generator.set_state(generator.get_state().new_tensor(value.tolist()))

    def _generators(self) -> list[Any]:
        """Returns the random generators of PyTorch and of the loader, on any backend of Keras."""
        loader = self._loader
        holders = (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
        loader_generators = [getattr(holder, "generator", None) for holder in holders]
        generators = [
            sys.modules["torch"].default_generator,
            *(g for g in loader_generators if g is not None),
        ]
        return list({id(generator): generator for generator in generators}.values())


def _take_rows(batches: Iterator[Any], first: int, step: int) -> Iterator[Any]:
    """Yields the rows `first::step` of each batch."""
    try:
        for batch in batches:
            yield keras.tree.map_structure(
                lambda array: array[first::step], batch, none_is_leaf=False
            )
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _skip(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """Draws and drops the first `count` batches at once, and returns the others."""
    next(itertools.islice(batches, count, count), None)
    return batches


def _check_tuple(batch: Any) -> Any:
    """Returns a generator's batch; raises an error if it is not a tuple."""
    if not isinstance(batch, tuple):
        raise InvalidInputError(
            "The generator must yield tuples: (inputs,), (inputs, targets) or (inputs, targets, "
            f"sample_weights); received a {type(batch).__name__}."
        )
    return batch
