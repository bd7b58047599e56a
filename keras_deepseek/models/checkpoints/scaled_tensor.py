"""Float8 and float4 tensors of a checkpoint, with one scale for each block of numbers.

DeepSeek's releases store the scales in a separate tensor. In DeepSeek-V4's fp4 format each byte
holds two four-bit numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles, StoredTensor

DEFAULT_BLOCK_SHAPE = (128, 128)
"""The block shape of float8 matrices if the config does not give one."""

FLOAT8 = "F8_E4M3"
FLOAT4_PAIRS = "I8"
"""The dtype that the releases give to bytes that hold two float4 numbers each."""

_SCALE_DTYPES = ("F8_E8M0", "F32", "BF16", "F16")

FLOAT4_BLOCK_SHAPE = (1, 32)
"""The shape of the blocks that share a scale: 32 inputs of one output."""

_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = np.array([*_SIZES, *(-size for size in _SIZES)], "<f4")
_ALL_BYTES = np.arange(256)
# A lookup returns both numbers of a byte as one item of eight bytes. The low bits come first.
_PAIRS = np.stack([_NUMBERS[_ALL_BYTES & 15], _NUMBERS[_ALL_BYTES >> 4]], axis=-1).view("u8")[:, 0]
_ALL = (slice(None), slice(None))


def list_scale_names(name: str) -> Sequence[str]:
    """Returns the possible names of the tensor that holds the scales of a given tensor.

    For `"layers.0.attn.wq_a.weight"`, DeepSeek-V3 appends `_scale_inv`, and DeepSeek-V4 has
    `"layers.0.attn.wq_a.scale"`.
    """
    appended = f"{name}_scale_inv"
    stem = name.removesuffix(".weight")
    return (appended,) if stem == name else (appended, f"{stem}.scale")


def takes_scales(stored_dtype: str, dtype: str) -> bool:
    """Returns True if a stored dtype needs scales to be read into a variable's dtype.

    Bytes that are read into an integer variable are plain integers. `dtype` is that of the
    variable.
    """
    return "int" not in dtype and stored_dtype in (FLOAT8, FLOAT4_PAIRS)


class Float4Pairs:
    """A matrix of float4 numbers (e2m1) that is converted to float32 where it is indexed.

    The codes are `(rows, columns / 2)`, with a dtype of one byte. The low four bits hold the number
    of the even column.
    """

    def __init__(self, codes: Array) -> None:
        self._codes = codes.view("u1")
        self.shape = (codes.shape[0], 2 * codes.shape[1])

    def __getitem__(self, index: tuple[Any, Any]) -> Array:
        rows, columns = index
        chosen = np.arange(self.shape[1])[columns]
        if not chosen.size:
            return np.empty((*self._codes[rows, :1].shape[:-1], *chosen.shape), "f4")
        begin, end = int(chosen.min()) // 2, int(chosen.max()) // 2 + 1
        numbers: Array = _PAIRS[self._codes[rows, begin:end]].view("f4")
        is_all = numbers.shape[-1:] == chosen.shape and chosen[0] <= chosen[-1]
        return numbers if is_all else numbers[..., chosen - 2 * begin]


class ScaledBlocks:
    """A matrix of float8 or float4 values times block scales, converted to float32 on indexing.

    It has the parts of the array interface that checkpoint entries use: `shape`, `dtype`, `T`,
    indexing and `reshape`. NumPy functions convert the whole matrix. Values of a float8 dtype are
    `(rows, columns)`, and scales `(ceil(rows / block_rows), ceil(columns / block_columns))`.
    """

    dtype = np.dtype("float32")

    def __init__(
        self, values: Array | Float4Pairs, scales: Array, block_shape: tuple[int, int]
    ) -> None:
        self._values = values
        self._scales = scales
        self._block_shape = block_shape
        self._is_transposed = False
        self.shape = values.shape

    @property
    def T(self) -> "ScaledBlocks":  # noqa: N802 - NumPy's name.
        """The transposed matrix."""
        turned = ScaledBlocks(self._values, self._scales, self._block_shape)
        turned._is_transposed = not self._is_transposed
        turned.shape = self.shape[::-1]
        return turned

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Array:
        first, second, *_ = (*(index if isinstance(index, tuple) else (index,)), *_ALL)
        # Computed in the order of the file, where neighbours share a scale.
        return self._read(second, first).T if self._is_transposed else self._read(first, second)

    def reshape(self, *shape: Any) -> Array:
        """Returns the whole matrix as an array of another shape."""
        return self[:].reshape(*shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _read(self, rows: Any, columns: Any) -> Array:
        num_rows, num_columns = self._values.shape
        block_rows, block_columns = self._block_shape
        values: Array = self._values[rows, columns]
        if not isinstance(self._values, Float4Pairs):
            values = _to_float32(values)
        scales = self._scales[(np.arange(num_rows) // block_rows)[rows]].astype(self.dtype)
        if columns == _ALL[1] and num_columns % block_columns == 0:  # Several times as fast.
            blocks = values.reshape(*values.shape[:-1], -1, block_columns)
            blocks *= scales[..., None]
            return values
        values *= scales[..., (np.arange(num_columns) // block_columns)[columns]]
        return values


def _to_float32(values: Array) -> Array:
    """Converts float8 or float4 codes to float32 by a lookup table.

    It is three times as fast as a cast.
    """
    values = np.asarray(values)
    table = np.arange(256, dtype="u1").view(values.dtype).astype("float32")
    numbers: Array = table[values.view("u1")]
    return numbers


def count_blocks(shape: tuple[int, ...], block_shape: tuple[int, int]) -> tuple[int, ...]:
    """Returns the shape of the array of scales of a matrix, one scale for each block."""
    return tuple(-(-size // block) for size, block in zip(shape, block_shape, strict=True))


@dataclass(frozen=True)
class ScaledTensor:
    """A float8 or float4 tensor of a checkpoint, and the tensor that holds its scales.

    Args:
        scales: `None` if they are missing.
        block_shape: The shape of the blocks that share a scale in a float8 tensor.
    """

    tensor: StoredTensor
    scale_name: str
    scales: StoredTensor | None
    block_shape: tuple[int, int]

    @property
    def is_packed(self) -> bool:
        """True if each byte holds two float4 numbers."""
        return self.tensor.dtype == FLOAT4_PAIRS

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that make up this tensor: its values and, if present, its scales."""
        return (self.tensor,) if self.scales is None else (self.tensor, self.scales)

    def compare(self, name: str, shape: tuple[int, ...]) -> Iterator[str]:
        """Yields a message for each mismatch between the stored tensor and its variable.

        `shape` is the expected one, in numbers rather than bytes.
        """
        if len(shape) != len(self.block_shape):
            yield f"{name!r} has dtype {self.tensor.dtype}, which only matrices may have"
            return
        stored = (shape[0], -(-shape[1] // 2)) if self.is_packed else shape
        if self.tensor.shape != stored:
            packed = f", two numbers a byte, for {shape}" if self.is_packed else ""
            yield f"{name!r} has shape {self.tensor.shape}, expected {stored}{packed}"
        if self.scales is None:
            return
        blocks = count_blocks(shape, self._blocks)
        if self.scales.shape != blocks:
            rows, columns = self._blocks
            source = "" if self.is_packed else " (`weight_block_size` of config.json)"
            yield (
                f"{self.scale_name!r} has shape {self.scales.shape}, expected {blocks} for "
                f"blocks of {rows} by {columns}{source}"
            )
        if self.scales.dtype not in _SCALE_DTYPES:
            yield (
                f"{self.scale_name!r} has dtype {self.scales.dtype}, expected "
                f"{' or '.join(_SCALE_DTYPES)}"
            )

    def read(self, files: MappedFiles) -> ScaledBlocks:
        """Returns the values times their scales, as a matrix that is converted on indexing."""
        values, scales = (files.read(part) for part in self.parts)
        numbers = Float4Pairs(values) if self.is_packed else values
        return ScaledBlocks(numbers, scales, self._blocks)

    @property
    def _blocks(self) -> tuple[int, int]:
        return FLOAT4_BLOCK_SHAPE if self.is_packed else self.block_shape
