"""The numbers of the DeepSeek releases, decoded bit by bit.

By the formats' definitions: a sign, an exponent and a fraction (e4m3 of OCP's FP8, which has no
infinity; e2m1 and the scales e8m0 of OCP's microscaling formats), and a scale for each block.
Of no code of the package or of `ml_dtypes`.
"""

import numpy as np


def decode_bits(code: int, exponent_bits: int, fraction_bits: int, bias: int) -> float:
    """Returns the number of a code of a sign, an exponent and a fraction."""
    sign = -1.0 if code >> (exponent_bits + fraction_bits) & 1 else 1.0
    exponent = code >> fraction_bits & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    if exponent == 0:  # Numbers near zero have no leading one.
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)


_FLOAT8 = np.array([decode_bits(code, 4, 3, 7) for code in range(256)], "float32")
_FLOAT4 = np.array([decode_bits(code, 2, 1, 1) for code in range(16)], "float32")


def decode_float8(codes: np.ndarray) -> np.ndarray:
    """Returns the numbers of bytes in e4m3; 0x7F and 0xFF, which are none, must not be there."""
    return _FLOAT8[codes]


def decode_float4(codes: np.ndarray) -> np.ndarray:
    """Returns the numbers of bytes that hold two in e2m1 each, of twice as many columns."""
    numbers = np.empty((codes.shape[0], 2 * codes.shape[1]), "float32")
    numbers[:, 0::2], numbers[:, 1::2] = _FLOAT4[codes & 15], _FLOAT4[codes >> 4]
    return numbers


def decode_scales(codes: np.ndarray) -> np.ndarray:
    """Returns the powers of two that bytes in e8m0 stand for."""
    return np.array([2.0 ** (int(code) - 127) for code in codes.ravel()]).reshape(codes.shape)


def multiply(numbers: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Returns the numbers times the scales of their blocks, in float32."""
    products = np.empty(numbers.shape, "float32")
    for row, column in np.ndindex(*scales.shape):
        block_slices = tuple(
            slice(number * size, (number + 1) * size)
            for number, size in zip((row, column), block, strict=True)
        )
        products[block_slices] = numbers[block_slices].astype("float64") * float(
            scales[row, column]
        )
    return products
