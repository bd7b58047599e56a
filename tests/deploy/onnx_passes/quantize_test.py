import logging

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.precision import quantize


def test_products_are_in_int8_and_near(dense, run):
    onnx = pytest.importorskip("onnx")
    generator = np.random.default_rng(2)
    batches = [{"x": generator.normal(size=(8, 4)).astype("float32")} for _ in range(4)]
    quantized = quantize(dense, batches)
    kinds = [node.op_type for node in quantized.graph.node]
    assert "QuantizeLinear" in kinds
    assert "DequantizeLinear" in kinds
    points = {
        onnx.numpy_helper.to_array(tensor).item()
        for tensor in quantized.graph.initializer
        if "zero_point" in tensor.name and not tensor.dims
    }
    assert points == {0}  # Symmetric, as TensorRT asks.
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in quantized.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and "zero_point" not in tensor.name
    ]
    # So that a processor without VNNI adds two products in 16 bits without an overflow.
    assert weights
    assert max(np.abs(weight.astype("int32")).max() for weight in weights) <= 64
    x = batches[0]["x"]
    expected = run(dense, x)
    received = run(quantized, x)
    assert 0 < np.abs(received - expected).max() < 0.05 * np.abs(expected).max()


def test_advice_to_simplify_what_is_simple_is_kept_back(dense, caplog):
    original = dense.SerializeToString()
    with caplog.at_level(logging.WARNING):
        quantized = quantize(dense, [{"x": np.ones((8, 4), "float32")}])
        logging.getLogger().warning("another")
    assert caplog.messages == ["another"]
    assert dense.SerializeToString() == original
    assert "onnx.quant.pre_process" not in {entry.key for entry in quantized.metadata_props}


def test_the_root_logger_is_left_as_it_is(dense, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # As of who set none: then Python adds one.
    filters = list(root.filters)
    quantize(dense, [{"x": np.ones((8, 4), "float32")}])
    assert root.handlers == []
    assert root.filters == filters
