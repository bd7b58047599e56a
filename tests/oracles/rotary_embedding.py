"""Rotary embedding in float64 NumPy: each pair a complex number, turned by one multiplication."""

import numpy as np


def rotary_embedding(x, positions, frequencies, interleaved=False, amplitude=1.0):
    """Rotates `x` of (batch, length, ..., dim); `frequencies` has an angle a token per pair."""
    x = np.array(x, "float64")
    half = len(frequencies)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + half) for i in range(half)]
    middle = (1,) * (x.ndim - 3)
    for (first, second), frequency in zip(pairs, frequencies, strict=True):
        turn = amplitude * np.exp(1j * np.asarray(positions, "float64") * frequency)
        turn = turn.reshape(*turn.shape, *middle)
        turned = (x[..., first] + 1j * x[..., second]) * turn
        x[..., first], x[..., second] = turned.real, turned.imag
    return x
