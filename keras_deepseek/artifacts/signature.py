"""What goes into a model and what comes out: names, shapes and dtypes, without any framework.

`backend` reads a signature off a Keras model, `deploy` writes it into the bundle's manifest,
`inference` checks each request against it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_deepseek.errors import InvalidInputError

Array = npt.NDArray[Any]
InferenceFunction = Callable[[dict[str, Array]], dict[str, Array]]
"""A batch's outputs by name for its inputs by name."""


@dataclass(frozen=True)
class TensorSpec:
    """One named input or output.

    Args:
        name: string. The name that requests and artifacts use.
        shape: tuple of integers or `None`. The batch axis comes first; `None` is an axis of any
        length.
        dtype: string. NumPy's name of the dtype, `"object"` for strings, or `"bfloat16"`.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} ({sizes})"

    def check(self, value: Any) -> Array:
        """Returns `value` as an array of this dtype, or says in what it differs.

        Args:
            value: An array, or nested lists of numbers. The batch axis comes first.

        Returns:
            A NumPy array.

        Raises:
            InvalidInputError: The shape does not fit, or the values can't be of this dtype.
        """
        return self._cast(self._check_shape(self._to_array(value)))

    def cast(self, value: Any) -> Array:
        """Returns `value` as an array of this dtype, of whatever shape it has.

        Args:
            value: An array, or nested lists of numbers.

        Returns:
            A NumPy array.

        Raises:
            InvalidInputError: The values can't be of this dtype.
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
            raise InvalidInputError(
                f"Input {self.name!r}: received shape {array.shape}; expected {self}."
            )
        return array

    def _cast(self, array: Array) -> Array:
        target = find_dtype(self.dtype)
        if array.dtype == target:
            return array
        try:
            with np.errstate(over="raise"):
                if array.dtype.kind == target.kind == "f":  # NumPy's own floats may be rounded.
                    return array.astype(target)
                if not array.size or _keeps_its_meaning(array, target):
                    return _round(array, target)
        except FloatingPointError:
            pass  # A float beyond the range of a shorter one.
        raise InvalidInputError(
            f"Input {self.name!r}: received {_describe(array, self.dtype)}; expected {self}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns this as values that JSON can hold."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "TensorSpec":
        """Returns what `to_dict` was called on."""
        return cls(str(config["name"]), tuple(config["shape"]), str(config["dtype"]))


def _describe(array: Array, wanted: str) -> str:
    """Returns what can't be of the dtype that is wanted, in words for who sent it, as in JSON."""
    if array.dtype.kind not in "SUO":
        kind = "text" if wanted == "object" else wanted
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
    for size, wanted in zip(sizes, expected, strict=True):
        if wanted is not None and size != wanted:
            return False
    return True


# To ask each array's dtype for its name would take longer than to cast a small array.
@functools.cache
def find_dtype(name: str) -> np.dtype[Any]:
    """Returns NumPy's dtype of a name in a signature.

    Args:
        name: string. NumPy's, or `"bfloat16"`, which NumPy has by the package `ml_dtypes` alone.
    """
    if name == "bfloat16":
        import ml_dtypes  # It makes the name known to NumPy.

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def _exact_integers(value: Any, array: Array, dtype: str) -> Array:
    """Returns integers from a list for which NumPy chose floats, which would round the large ones.

    NumPy does so where one is beyond int64 and another is not.
    """
    exact = np.asarray(value, object)
    if all(isinstance(each, int) for each in exact.ravel().tolist()):
        try:
            return exact.astype(dtype)
        except OverflowError:
            pass  # Then one of them is beyond this dtype, too, and `array` is refused.
    return array


@functools.lru_cache(64)
def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16"


def _kind(dtype: np.dtype[Any]) -> str:
    return "f" if _is_bfloat16(dtype) else dtype.kind


def _round(array: Array, target: np.dtype[Any]) -> Array:
    rounded = array.astype(target)
    # NumPy does not notice an overflow of this dtype, which is not its own.
    if _is_bfloat16(target) and (np.isinf(rounded) & np.isfinite(array)).any():
        raise FloatingPointError
    return rounded


def _keeps_its_meaning(array: Array, target: np.dtype[Any]) -> bool:
    """Floats may be rounded to a shorter float; nothing else may change its value."""
    kind = _kind(array.dtype)
    if kind not in "biuf":
        # Text and bytes of NumPy's own are strings of any length as well.
        return kind == target.kind or (kind in "SU" and target.kind == "O")
    if target.kind in "iu":
        limits = np.iinfo(target)
        if kind != "f":
            return int(array.min()) >= limits.min and int(array.max()) <= limits.max
        # As a float the largest integer may be the one above it, which is no integer of the dtype.
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

    def bind(self, values: Any) -> dict[str, Array]:
        """Returns checked arrays by input name.

        Args:
            values: One array where there is one input; else a mapping by input name, or a sequence
                in the order of the inputs. The batch axis comes first and has one length in all.

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

    def _pair(self, values: Any) -> list[tuple[TensorSpec, Any]]:
        names = [spec.name for spec in self.inputs]
        if isinstance(values, Mapping):
            missing = [name for name in names if name not in values]
            extra = [str(name) for name in values if name not in names]
            if missing or extra:
                raise InvalidInputError(
                    f"Inputs by name: missing {missing}, unknown {extra}; expected {names}."
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
        """Returns this as values that JSON can hold."""
        return {
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Signature":
        """Returns what `to_dict` was called on."""
        return cls(
            inputs=tuple(TensorSpec.from_dict(spec) for spec in config["inputs"]),
            outputs=tuple(TensorSpec.from_dict(spec) for spec in config["outputs"]),
        )
