import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes import onnx_file as module
from keras_deepseek.deploy.onnx_passes.onnx_file import is_on_disk, load, save


@pytest.mark.parametrize(("largest", "files"), [(10**9, 1), (1_000, 2)])
def test_weights_that_one_file_can_not_hold_stand_beside_it(
    make_graph, tmp_path, monkeypatch, largest, files
):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "LARGEST_FILE", largest)
    kernel = np.random.default_rng(0).normal(size=(4, 300)).astype("float32")
    graph = make_graph("y = MatMul (x, kernel)", {"kernel": kernel}, output_shape=(None, 300))
    save(graph, tmp_path / "model.onnx")
    expected = ["model.onnx", "model.onnx.data"][:files]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    x = np.ones((2, 4), "float32")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ kernel, rtol=1e-5)


def test_large_weights_stay_on_disk_and_small_ones_are_read(make_graph, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "LARGEST_FILE", 1_000)
    monkeypatch.setattr(module, "_LEAST_BESIDE", 4_000)
    path = tmp_path / "model.onnx"
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(4, 300)).astype("float32")
    bias = generator.normal(size=300).astype("float32")
    nodes = "product = MatMul (x, kernel)  y = Add (product, bias)"
    graph = make_graph(nodes, {"kernel": kernel, "bias": bias}, output_shape=(None, 300))
    save(graph, path)
    read, is_large = load(path)
    assert is_large
    assert {tensor.name: is_on_disk(tensor) for tensor in read.graph.initializer} == {
        "kernel": True,
        "bias": False,
    }
    read.graph.node[1].op_type = "Sub"
    save(read, path)
    x = np.ones((2, 4), "float32")
    session = onnxruntime.InferenceSession(path)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ kernel - bias, rtol=1e-4)


def test_what_one_file_holds_is_read_whole(make_graph, tmp_path):
    save(make_graph("y = MatMul (x, k)", {"k": np.ones((4, 3), "f")}), tmp_path / "model.onnx")
    read, is_large = load(tmp_path / "model.onnx")
    assert not is_large
    assert not any(map(is_on_disk, read.graph.initializer))
