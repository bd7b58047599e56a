"""The modes in which the experts of a model can be quantized, as arguments of `quantize`."""

import keras
import pytest

MODES = {"int8": {"mode": "int8"}, "int4": {"mode": "int4"}}
if hasattr(keras.dtype_policies, "Int4DTypePolicy"):  # Keras 3.13 has no blocks.
    for name, block_size in (("int4", None), ("blocks", 4)):
        MODES[name] = {"config": keras.quantizers.Int4QuantizationConfig(block_size=block_size)}

in_each_mode = pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[pytest.mark.nightly] * (mode != "int4")) for mode in MODES],
)
"""Runs a test in each mode, of which the gate takes one: `expert_kernels_test.py` has all."""

needs_blocks = pytest.mark.skipif("blocks" not in MODES, reason="Keras 3.13 has no blocks in int4.")
