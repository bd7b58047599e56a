"""The dtypes that are tested where softmax and sums are computed in float32 or better."""

import keras

PRECISIONS = ["float32"] if keras.backend.backend() == "jax" else ["float32", "float64"]
"""JAX has no float64 unless it is asked to."""
