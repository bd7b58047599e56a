"""How the DeepSeek releases store a matrix in float8 or float4, beside a tensor with its scales."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from keras_deepseek.models.checkpoints.float4_pairs import FLOAT4_BLOCK_SHAPE, Float4Pairs
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles, StoredTensor
from keras_deepseek.models.checkpoints.scaled_blocks import ScaledBlocks, count_blocks

DEFAULT_BLOCK_SHAPE = (128, 128)
"""The blocks of a float8 matrix where a config says nothing."""

FLOAT8 = "F8_E4M3"
FLOAT4_PAIRS = "I8"
"""What the releases call bytes of two float4 numbers each."""

_SCALE_DTYPES = ("F8_E8M0", "F32", "BF16", "F16")


def list_scale_names(name: str) -> Sequence[str]:
    """Returns what the tensor with the scales of another may be called.

    Args:
        name: string. As in `"layers.0.attn.wq_a.weight"`: DeepSeek-V3 appends to it, V4 has
            `"layers.0.attn.wq_a.scale"`.
    """
    appended = f"{name}_scale_inv"
    stem = name.removesuffix(".weight")
    return (appended,) if stem == name else (appended, f"{stem}.scale")


def takes_scales(stored_dtype: str, dtype: str) -> bool:
    """Returns whether a tensor holds numbers that scales belong to.

    Args:
        stored_dtype: string. The name of its dtype in the file.
        dtype: string. That of the variable it is for. Bytes that are to be integers are integers.
    """
    return "int" not in dtype and stored_dtype in (FLOAT8, FLOAT4_PAIRS)


@dataclass(frozen=True)
class ScaledTensor:
    """A tensor in float8 or float4, and the tensor with its scales.

    Args:
        tensor: `StoredTensor`.
        scale_name: string. The name of that with the scales.
        scales: `StoredTensor`, or `None` where it is missing.
        block_shape: tuple of two integers. The blocks that a float8 tensor has scales of.
    """

    tensor: StoredTensor
    scale_name: str
    scales: StoredTensor | None
    block_shape: tuple[int, int]

    @property
    def is_packed(self) -> bool:
        """Whether each byte holds two numbers."""
        return self.tensor.dtype == FLOAT4_PAIRS

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The tensor and, where it is there, that with the scales."""
        return (self.tensor,) if self.scales is None else (self.tensor, self.scales)

    def compare(self, name: str, shape: tuple[int, ...]) -> Iterator[str]:
        """Yields in words what does not fit a variable.

        Args:
            name: string. That of the tensor.
            shape: tuple of integers. What the tensor must have, all numbers counted.
        """
        if len(shape) != len(self.block_shape):
            yield f"{name!r} is of dtype {self.tensor.dtype}, which matrices alone may be"
            return
        stored = (shape[0], -(-shape[1] // 2)) if self.is_packed else shape
        if self.tensor.shape != stored:
            packed = f", two numbers a byte, for {shape}" if self.is_packed else ""
            yield f"{name!r} is {self.tensor.shape}, expected {stored}{packed}"
        if self.scales is None:
            return
        blocks = count_blocks(shape, self._blocks)
        if self.scales.shape != blocks:
            rows, columns = self._blocks
            told = "" if self.is_packed else " (`weight_block_size` of config.json)"
            yield (
                f"{self.scale_name!r} is {self.scales.shape}, expected {blocks} for blocks of "
                f"{rows} by {columns}{told}"
            )
        if self.scales.dtype not in _SCALE_DTYPES:
            yield (
                f"{self.scale_name!r} is of dtype {self.scales.dtype}, expected "
                f"{' or '.join(_SCALE_DTYPES)}"
            )

    def read(self, files: MappedFiles) -> ScaledBlocks:
        """Returns the numbers, which are computed where they are asked for.

        Args:
            files: `MappedFiles`.
        """
        values, scales = (files.read(part) for part in self.parts)
        numbers = Float4Pairs(values) if self.is_packed else values
        return ScaledBlocks(numbers, scales, self._blocks)

    @property
    def _blocks(self) -> tuple[int, int]:
        return FLOAT4_BLOCK_SHAPE if self.is_packed else self.block_shape
