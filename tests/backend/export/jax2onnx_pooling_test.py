"""What pools over too many axes for onnxruntime computes the same over fewer."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("They are JAX's.", allow_module_level=True)

from keras_deepseek.backend.jax.export import pool_over_fewer_axes


def write(path, **options):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["a"]),
        helper.make_node("Unsqueeze", ["a", "axis"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], **options),
        helper.make_node("Squeeze", ["c", "axes"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(value), name)
        for name, value in (("axis", [0]), ("axes", [0, 1]))
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "pooling", values[:1], values[1:], constants)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_batch_and_the_channels_are_not_pooled(channels, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    path = str(tmp_path / "model.onnx")
    windows = [1, 2, 3, 1] if channels == 3 else [1, 1, 2, 3]
    pads = [0, 1, 0, 0, 0, 0, 0, 0] if channels == 3 else [0, 0, 1, 0, 0, 0, 0, 0]
    strides = [1, 2, 1, 1] if channels == 3 else [1, 1, 2, 1]
    write(path, kernel_shape=windows, pads=pads, strides=strides)
    pool_over_fewer_axes(path)
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")
    images = x if channels == 3 else np.transpose(x, (0, 3, 1, 2))
    (received,) = runtime.InferenceSession(path).run(None, {"x": images})
    received = received if channels == 3 else np.transpose(received, (0, 2, 3, 1))
    padded = np.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3), axis=(1, 2))[:, ::2]
    np.testing.assert_array_equal(received, windows.max(axis=(-1, -2)))


def test_other_poolings_are_left_alone(tmp_path):
    path = tmp_path / "model.onnx"
    write(path, kernel_shape=[2, 2, 2, 2])
    written = path.read_bytes()
    pool_over_fewer_axes(str(path))
    assert path.read_bytes() == written
