"""Reading of training data through Keras's data adapters."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

__all__ = [
    "ArrayAdapter",
    "DataAdapter",
    "array_slices",
    "batch_specs",
    "cast_arrays",
    "copied_batches",
    "find_data_adapter",
    "from_scipy",
    "numpy_batches",
    "py_dataset_batches",
    "set_aside_validation",
    "split_validation",
    "tensorflow_specs",
]

_KINDS = {
    "ArrayDataAdapter": "arrays",
    "GeneratorDataAdapter": "generator",
    "GrainDatasetAdapter": "Grain",
    "PyDatasetAdapter": "PyDataset",
    "TFDatasetAdapter": "tf.data",
    "TorchDataLoaderAdapter": "DataLoader",
}


def find_data_adapter(x: Any, **arguments: Any) -> tuple[str | None, Any]:
    """Returns the kind of training data as `fit` takes them, and Keras's adapter for them.

    The kind is `"arrays"`, `"generator"`, `"Grain"`, `"PyDataset"`, `"tf.data"`, `"DataLoader"`, or
    `None` for another.
    """
    adapter = keras.src.trainers.data_adapters.get_data_adapter(x, **arguments)
    return _KINDS.get(type(adapter).__name__), adapter


def array_slices(adapter: Any) -> tuple[int, Callable[[Any], Any]]:
    """Returns the number of rows of an adapter's arrays, and a function from indices to a batch.

    A batch holds NumPy arrays. On PyTorch, data that are tensors stay tensors, on their GPU.
    """
    slicing = keras.src.trainers.data_adapters.array_slicing
    target, convert = "numpy", "convert_to_numpy"
    if keras.backend.backend() == "torch":
        target, convert = "torch", "convert_to_torch_compatible"
    arrays = slicing.convert_to_sliceable(adapter._inputs, target_backend=target)

    def take(indices: Any) -> Any:
        return keras.tree.map_structure(
            lambda array: getattr(array, convert)(array[indices]), arrays, none_is_leaf=False
        )

    return adapter._num_samples, take


class ArrayAdapter(ArrayDataAdapter):
    """Keras's adapter for arrays, which tells what it holds."""

    @property
    def shuffles(self) -> bool:
        """True if each pass has another order of rows."""
        return bool(self._shuffle)

    @property
    def num_rows(self) -> int:
        """The number of rows of each array."""
        return int(self._num_samples)

    @property
    def structure(self) -> Any:
        """The nested arrays of a batch: inputs, or a tuple with targets and sample weights."""
        return self._inputs


def cast_arrays(adapter: Any) -> list[Any]:
    """Returns the arrays of an adapter as they are cut, with floats in Keras's `floatx`.

    JAX's become NumPy's. What needs a conversion after cutting, as pandas's do, is `None`.
    """
    slicing = keras.src.trainers.data_adapters.array_slicing
    parts = slicing.convert_to_sliceable(adapter._inputs, target_backend="numpy")
    kinds = (slicing.NumpySliceable, slicing.TensorflowSliceable, slicing.TorchSliceable)
    return [part.array if type(part) in kinds else None for part in keras.tree.flatten(parts)]


def set_aside_validation(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `fit` with the `validation_split` of their arrays carried out."""
    options = dict(arguments)
    split = options.pop("validation_split", 0.0)
    if split and options.get("validation_data") is None:
        names = ("x", "y", "sample_weight")
        train, options["validation_data"] = split_validation(tuple(map(options.get, names)), split)
        options.update(zip(names, train, strict=True))
    return options


def numpy_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches with the tensors of any framework as NumPy arrays."""
    utils = keras.src.trainers.data_adapters.data_adapter_utils
    yield from utils.get_numpy_iterator(batches)


def copied_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields copies of batches, so that their producer may reuse its memory.

    They hold NumPy arrays, and on PyTorch tensors on Keras's device.
    """
    is_torch = keras.backend.backend() == "torch"

    def copy(leaf: Any) -> Any:
        if is_torch:
            is_tensor = keras.ops.is_tensor(leaf)
            return keras.ops.copy(leaf) if is_tensor else keras.ops.convert_to_tensor(leaf)
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    for batch in batches if is_torch else numpy_batches(batches):
        yield keras.tree.map_structure(copy, batch, none_is_leaf=False)


def from_scipy(leaf: Any) -> Any:
    """Converts a SciPy sparse matrix to the backend's sparse tensor; keeps other values."""
    utils = keras.src.trainers.data_adapters.data_adapter_utils
    if not utils.is_scipy_sparse(leaf):
        return leaf
    if keras.backend.backend() == "jax":
        return utils.scipy_sparse_to_jax_sparse(leaf)
    return utils.scipy_sparse_to_tf_sparse(leaf)


def py_dataset_batches(dataset: keras.utils.PyDataset, class_weight: Any) -> Iterator[Any]:
    """Yields the batches of a `PyDataset` as Keras does, with its workers."""
    adapters = keras.src.trainers.data_adapters.py_dataset_adapter
    adapter = adapters.PyDatasetAdapter(dataset, class_weight=class_weight, shuffle=False)
    adapter.on_epoch_begin()
    try:
        yield from copied_batches(adapter._get_iterator())
    finally:
        adapter.on_epoch_end()  # Ends its workers.


def split_validation(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Splits arrays by `validation_split` into those to train on and those to validate on."""
    slicing = keras.src.trainers.data_adapters.array_slicing
    train, validation = slicing.train_validation_split(arrays, validation_split=validation_split)
    return train, validation


def batch_specs(batches: list[Any]) -> Any:
    """Describes batches as `KerasTensor`s, with `None` for sizes that differ."""

    def describe(leaf: Any) -> Any:
        # TensorFlow's strings are objects in NumPy.
        is_text = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU"
        return keras.KerasTensor(leaf.shape, "string") if is_text else leaf

    batches = keras.tree.map_structure(describe, batches)
    return keras.src.trainers.data_adapters.data_adapter_utils.get_keras_tensor_spec(batches)


def tensorflow_specs(specs: Any) -> Any:
    """Converts `KerasTensor`s to TensorFlow specs of batches of any number of rows."""
    convert = keras.src.trainers.data_adapters.data_adapter_utils.convert_to_tf_tensor_spec
    return keras.tree.map_structure(
        lambda spec: convert(spec) if spec is None or isinstance(spec, keras.KerasTensor) else spec,
        specs,
    )
