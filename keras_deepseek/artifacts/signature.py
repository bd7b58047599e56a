"""The inputs and outputs of a model: names, shapes and dtypes, without any framework.

`backend` reads a signature from a Keras model, `deploy` writes it into the bundle's manifest, and
`inference` checks each request against it.
"""

import functools
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_deepseek.errors import InvalidInputError, did_you_mean

Array = npt.NDArray[Any]
Batch = dict[str, Array]
"""The arrays of a batch of inputs or outputs, by name."""

InferenceFunction = Callable[[Batch], Batch]
"""A function from a batch's inputs by name to its outputs by name."""


@dataclass(frozen=True)
class TensorSpec:
    """The name, shape and dtype of one input or output.

    Args:
        name: string. The name that requests and artifacts use.
        shape: tuple of integers or `None`. The batch axis comes first; `None` is an axis of any
            length.
        dtype: string. NumPy's name of the dtype, `"object"` for strings, or `"bfloat16"`.
        vocabulary_size: integer. All values must be from 0 to below it, as the model looks them up
            in an `Embedding`. Defaults to `None`: any value.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    vocabulary_size: int | None = None

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        values = "" if self.vocabulary_size is None else f" from 0 to {self.vocabulary_size - 1}"
        return f"{self.name}: {self.dtype} ({sizes}){values}"

    def check(self, value: Any) -> Array:
        """Converts a value to an array of this dtype, and checks its shape.

        Args:
            value: An array, or nested lists of numbers. The batch axis comes first.

        Returns:
            A NumPy array.

        Raises:
            InvalidInputError: The shape does not fit, an axis beside the batch is empty, or the
                values can't be converted to this dtype or are not in the vocabulary.
        """
        return self._check_values(self._cast(self._check_shape(self._to_array(value))))

    def cast(self, value: Any) -> Array:
        """Converts a value to an array of this dtype, of any shape.

        Args:
            value: An array, or nested lists of numbers.

        Returns:
            A NumPy array.

        Raises:
            InvalidInputError: The values can't be converted to this dtype.
        """
        return self._cast(self._to_array(value))

    def _to_array(self, value: Any) -> Array:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InvalidInputError(
                f"Input {self.name!r}: rows of unequal length; expected {self}."
            ) from error
        if array.dtype == np.float64 and self.dtype in ("int64", "uint64"):
            return _exact_integers(value, array, self.dtype)
        return array

    def _check_shape(self, array: Array) -> Array:
        if not _fits(array.shape, self.shape):
            shape = f"shape {array.shape}" if array.ndim else f"one {type(array.item()).__name__}"
            raise InvalidInputError(f"Input {self.name!r}: received {shape}; expected {self}.")
        if not array.size and 0 in array.shape[1:] and 0 not in self.shape:
            raise InvalidInputError(
                f"Input {self.name!r}: received shape {array.shape}, whose axis "
                f"{array.shape.index(0, 1)} is empty; expected {self} with at least one value."
            )
        return array

    def _check_values(self, array: Array) -> Array:
        size = self.vocabulary_size
        if size is None or not array.size or (array.min() >= 0 and array.max() < size):
            return array
        index = tuple(np.argwhere(~((array >= 0) & (array < size)))[0].tolist())
        raise InvalidInputError(
            f"Input {self.name!r}: received {array[index]} at index {index}; expected {self}."
        )

    def _cast(self, array: Array) -> Array:
        target = find_dtype(self.dtype)
        if array.dtype == target:
            return array
        try:
            with np.errstate(over="raise"):
                if array.dtype.kind == target.kind == "f":  # Floats may be rounded.
                    return array.astype(target)
                if not array.size or _keeps_its_meaning(array, target):
                    return _round(array, target)
        except FloatingPointError:
            pass  # A float is beyond the range of a shorter dtype.
        raise InvalidInputError(
            f"Input {self.name!r}: received {_describe(array, self.dtype)}; expected {self}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as values that JSON can hold."""
        size = self.vocabulary_size
        vocabulary = {} if size is None else {"vocabulary_size": size}
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, **vocabulary}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "TensorSpec":
        """Returns the `TensorSpec` that `to_dict` was called on."""
        name, shape, dtype = str(config["name"]), tuple(config["shape"]), str(config["dtype"])
        return cls(name, shape, dtype, config.get("vocabulary_size"))


def _describe(array: Array, dtype: str) -> str:
    if array.dtype.kind not in "SUO":
        kind = "text" if dtype == "object" else dtype
        return f"dtype {array.dtype}, whose values can't all be {kind}"
    values = array.ravel().tolist()
    if any(value is None for value in values):
        return "a null"
    if any(isinstance(value, Mapping) for value in values):
        return 'an object, and {"b64": ...} is for strings alone'
    if all(isinstance(value, str | bytes) for value in values):
        return "text"
    is_whole = all(isinstance(value, int) for value in values)
    return "integers of more than 64 bits" if is_whole else "values of several kinds"


def _fits(sizes: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    if len(sizes) != len(expected):
        return False
    for size, expected_size in zip(sizes, expected, strict=True):
        if expected_size is not None and size != expected_size:
            return False
    return True


# Reading the name of each array's dtype would take longer than the cast of a small array.
@functools.cache
def find_dtype(name: str) -> np.dtype[Any]:
    """Returns the NumPy dtype for a signature's dtype name; `"bfloat16"` comes from `ml_dtypes`."""
    if name == "bfloat16":
        import ml_dtypes  # It registers the name with NumPy.

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def can_widen(name: str, other_name: str) -> bool:
    """Returns True if all values of a dtype fit another of the same kind, as int32 fits int64."""
    dtype, other_dtype = find_dtype(name), find_dtype(other_name)
    return _kind(dtype) == _kind(other_dtype) and np.can_cast(dtype, other_dtype, "safe")


def _exact_integers(value: Any, array: Array, dtype: str) -> Array:
    """Returns exact integers from a list that NumPy would round to floats.

    NumPy does so if one integer is beyond int64 and another is not.
    """
    exact = np.asarray(value, object)
    if all(isinstance(number, int) for number in exact.ravel().tolist()):
        try:
            return exact.astype(dtype)
        except OverflowError:
            pass  # One of them is beyond this dtype, too, so that `array` is refused.
    return array


@functools.lru_cache(64)
def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16"


def _kind(dtype: np.dtype[Any]) -> str:
    return "f" if _is_bfloat16(dtype) else dtype.kind


def _round(array: Array, target: np.dtype[Any]) -> Array:
    rounded = array.astype(target)
    # NumPy does not detect an overflow of a dtype that is not its own.
    if _is_bfloat16(target) and (np.isinf(rounded) & np.isfinite(array)).any():
        raise FloatingPointError
    return rounded


def _keeps_its_meaning(array: Array, target: np.dtype[Any]) -> bool:
    """Returns True if a cast keeps all values; floats may be rounded to a shorter float."""
    kind = _kind(array.dtype)
    if kind not in "biuf":
        # NumPy's own strings and bytes may become strings of any length.
        return kind == target.kind or (kind in "SU" and target.kind == "O")
    if target.kind in "iu":
        limits = np.iinfo(target)
        if kind != "f":
            return int(array.min()) >= limits.min and int(array.max()) <= limits.max
        # As a float, the largest integer may be rounded up, beyond the dtype.
        return (
            bool(np.all(np.floor(array) == array))
            and float(array.min()) >= limits.min
            and float(array.max()) < float(limits.max + 1)
        )
    if target.kind == "b":
        return bool(np.all((array == 0) | (array == 1)))
    return _kind(target) == "f"


@dataclass(frozen=True)
class Signature:
    """The named inputs and outputs of a model.

    Args:
        inputs: tuple of `TensorSpec`.
        outputs: tuple of `TensorSpec`.

    Example:

    >>> signature = Signature(
    ...     inputs=(TensorSpec("image", (None, 2), "float32"),),
    ...     outputs=(TensorSpec("label", (None, 10), "float32"),),
    ... )
    >>> signature.bind([[1, 2]])
    {'image': array([[1., 2.]], dtype=float32)}
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        inputs, outputs = ("; ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"{inputs} -> {outputs}"

    def bind(self, values: Any) -> dict[str, Array]:
        """Converts and checks the inputs of a batch.

        Args:
            values: One array for one input; else a mapping by input name, or a sequence in the
                order of the inputs. The batch axis comes first and has the same size in all.

        Returns:
            A dict of NumPy arrays by input name.

        Raises:
            InvalidInputError: A name, a shape, a dtype or a batch size does not fit.
        """
        arrays = {spec.name: spec.check(value) for spec, value in self._pair(values)}
        if len(arrays) == 1:
            return arrays
        sizes = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
        if len(set(sizes.values())) > 1:
            raise InvalidInputError(f"Inputs differ in batch size: {sizes}. Expected one size.")
        return arrays

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Checks the inputs of a batch before there are arrays of them.

        Args:
            shapes: mapping from the names of all inputs to their shapes.

        Raises:
            InvalidInputError: A name, a shape or a batch size does not fit.
        """
        for spec, shape in self._pair(shapes):
            if not _fits(shape, spec.shape):
                raise InvalidInputError(
                    f"Input {spec.name!r}: received shape {shape}; expected {spec}."
                )
        sizes = {name: shape[0] for name, shape in shapes.items() if shape}
        if len(set(sizes.values())) > 1:
            raise InvalidInputError(f"Inputs differ in batch size: {sizes}. Expected one size.")

    def _pair(self, values: Any) -> list[tuple[TensorSpec, Any]]:
        names = [spec.name for spec in self.inputs]
        if isinstance(values, Mapping):
            missing = [name for name in names if name not in values]
            extra = [str(name) for name in values if name not in names]
            if missing or extra:
                raise InvalidInputError(
                    f"Inputs by name: missing {missing}, unknown {reprlib.repr(extra)}; expected "
                    f"{names}.{did_you_mean(extra, missing)}"
                )
            return [(spec, values[spec.name]) for spec in self.inputs]
        if len(names) == 1:
            return [(self.inputs[0], values)]
        if isinstance(values, Sequence) and len(values) == len(names):
            return list(zip(self.inputs, values, strict=True))
        raise InvalidInputError(
            f"Expected a mapping with the inputs {names}, or a sequence of {len(names)} arrays in "
            f"that order; received {type(values).__name__}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the signature as values that JSON can hold."""
        return {
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Signature":
        """Returns the `Signature` that `to_dict` was called on."""
        return cls(
            inputs=tuple(TensorSpec.from_dict(spec) for spec in config["inputs"]),
            outputs=tuple(TensorSpec.from_dict(spec) for spec in config["outputs"]),
        )
