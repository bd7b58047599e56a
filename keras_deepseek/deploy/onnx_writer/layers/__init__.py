"""ONNX nodes of layers that a trace keeps whole."""

from keras_deepseek.deploy.onnx_writer.layers import (  # noqa: F401 - they register themselves.
    activations,
    preprocessing,
    recurrent,
)
