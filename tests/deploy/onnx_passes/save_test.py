import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes import save as module
from keras_deepseek.deploy.onnx_passes.save import save


@pytest.mark.parametrize(("largest", "files"), [(10**9, 1), (1_000, 2)])
def test_weights_that_one_file_can_not_hold_stand_beside_it(
    make_graph, tmp_path, monkeypatch, largest, files
):
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import helper

    monkeypatch.setattr(module, "_LARGEST", largest)
    kernel = np.random.default_rng(0).normal(size=(4, 300)).astype("float32")
    nodes = [helper.make_node("MatMul", ["x", "kernel"], ["y"])]
    save(make_graph(nodes, {"kernel": kernel}, output_shape=(None, 300)), tmp_path / "model.onnx")
    expected = ["model.onnx", "model.onnx.data"][:files]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    x = np.ones((2, 4), "float32")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ kernel, rtol=1e-5)
