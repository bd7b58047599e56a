"""ONNX nodes of each Keras operation."""

from keras_deepseek.deploy.onnx_writer.table import (  # noqa: F401 - they register themselves.
    arithmetic,
    attention,
    control_flow,
    creation,
    elementwise,
    images,
    indices,
    linear_algebra,
    neural,
    normalizations,
    products,
    reductions,
    shapes,
    slices,
)
