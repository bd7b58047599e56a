"""The passes after each other, on what the backend that runs writes of Keras's layers."""

from collections import Counter

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.onnx_passes.fusions import fuse
from keras_deepseek.deploy.onnx_passes.onnx_file import raise_opset, simplify


def build_block():
    """Attention, GELU and both normalizations, with weights that are not 0 and 1."""
    layers = keras.layers
    x = keras.Input((None, 8), name="x")
    hidden = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    outputs = layers.RMSNormalization()(hidden + layers.Dense(8)(layers.Dense(12, "gelu")(hidden)))
    model = keras.Model(x, outputs)
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if not variable.dtype.startswith("uint"):
            variable.assign(generator.normal(0.5, 0.2, variable.shape))
    return model


@pytest.fixture
def written(tmp_path):
    import onnx

    for package in {"tensorflow": ("tf2onnx",), "jax": ("jax2onnx",), "torch": ("onnxscript",)}[
        keras.backend.backend()
    ]:
        pytest.importorskip(package)
    pytest.importorskip("onnxslim")
    model = build_block()
    path = tmp_path / "model.onnx"
    backend.current().export.write_onnx(NamedModel(model), str(path), 18)
    return model, simplify(onnx.load(path))


@pytest.mark.parametrize("opset", [18, 20, 23, 25])
def test_a_block_of_keras_is_of_fused_operators(written, run_all, opset):
    model, graph = written
    graph = raise_opset(graph, opset)
    fuse(graph)
    counted = Counter(node.op_type for node in graph.graph.node)
    assert counted["Einsum"] == 0
    assert counted["LayerNormalization"] == 1
    assert counted["Gelu"] == (opset >= 20)
    assert counted["RMSNormalization"] == (opset >= 23)
    assert counted["Attention"] == (opset == 23)
    name = graph.graph.input[0].name
    generator = np.random.default_rng(1)
    for shape in ((1, 1, 8), (2, 5, 8), (3, 7, 8)):
        x = generator.normal(size=shape).astype("float32")
        (received,) = run_all(graph, {name: x})
        np.testing.assert_allclose(received, model.predict(x, verbose=0), atol=2e-5)


@keras.saving.register_keras_serializable("fuse_test")
class Positions(keras.layers.Layer):
    """A row of weights for each place of a batch."""

    def build(self, shape):
        self.row = self.add_weight(shape=(1, shape[-1]), name="row")

    def call(self, x):
        return keras.ops.broadcast_to(self.row, keras.ops.shape(x))


def build_embedder():
    """An embedding, positions, and queries that are scaled, with biases that are not 0."""
    layers = keras.layers
    ids = keras.Input((None,), dtype="int32", name="ids")
    hidden = layers.Embedding(50, 8)(ids)
    hidden = hidden + Positions()(hidden)
    queries = layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de")(hidden) * 0.125
    scores = keras.ops.einsum("bqhd,bkd->bhqk", queries, hidden[..., :4])
    return keras.Model(ids, scores)


def test_an_embedding_is_looked_up_and_no_more(tmp_path, run_all):
    import onnx

    for package in {"tensorflow": ("tf2onnx",), "jax": ("jax2onnx",), "torch": ("onnxscript",)}[
        keras.backend.backend()
    ]:
        pytest.importorskip(package)
    model = build_embedder()
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.normal(0.5, 0.2, variable.shape))
    path = tmp_path / "model.onnx"
    backend.current().export.write_onnx(NamedModel(model), str(path), 18)
    graph = simplify(onnx.load(path))
    fuse(graph)
    counted = Counter(node.op_type for node in graph.graph.node)
    for operator in ("Less", "Where", "Expand", "Mul"):
        assert counted[operator] == 0, counted
    name = graph.graph.input[0].name
    for shape in ((1, 1), (2, 5), (3, 7)):
        ids = generator.integers(0, 50, shape).astype("int32")
        (received,) = run_all(graph, {name: ids})
        np.testing.assert_allclose(received, model.predict(ids, verbose=0), atol=2e-5)
