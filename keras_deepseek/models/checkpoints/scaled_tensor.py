"""A float8 or float4 tensor of a checkpoint, together with its separate tensor of scales."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from keras_deepseek.models.checkpoints.float4_pairs import FLOAT4_BLOCK_SHAPE, Float4Pairs
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles, StoredTensor
from keras_deepseek.models.checkpoints.scaled_blocks import ScaledBlocks, count_blocks

DEFAULT_BLOCK_SHAPE = (128, 128)
"""The block shape of float8 matrices if the config does not give one."""

FLOAT8 = "F8_E4M3"
FLOAT4_PAIRS = "I8"
"""The dtype that the releases give to bytes that hold two float4 numbers each."""

_SCALE_DTYPES = ("F8_E8M0", "F32", "BF16", "F16")


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
