"""SwiGLU in float64 NumPy, from Shazeer's formula and the clamp of DeepSeek-V4."""

import numpy as np


def swiglu(x, gate, up, down, clamp=None):
    """Each of `gate`, `up` and `down` is a pair of kernel and bias."""
    x = np.asarray(x, "float64")
    z, u = (x @ kernel + bias for kernel, bias in (gate, up))
    if clamp is not None:
        z, u = np.minimum(z, clamp), np.clip(u, -clamp, clamp)
    kernel, bias = down
    return (z / (1 + np.exp(-z)) * u) @ kernel + bias
