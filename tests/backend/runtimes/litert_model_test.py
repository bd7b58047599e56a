import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_deepseek.backend.runtimes.litert_model import LiteRTModel
from keras_deepseek.errors import InvalidInputError, MissingExtraError

pytestmark = pytest.mark.tensorflow_alone


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """Writes a model that adds its two inputs, and multiplies the first by a matrix."""
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    specs = [tf.TensorSpec((None, 2), tf.float32, name=name) for name in ("x", "y")]
    weights = tf.constant([[2.0, 0.0], [0.0, 2.0]])
    module.run = tf.function(
        lambda x, y: {"sum": x + y, "double": x @ weights}, input_signature=specs
    )
    folder = tmp_path_factory.mktemp("litert")
    signatures = {"serving_default": module.run.get_concrete_function()}
    tf.saved_model.save(module, str(folder / "saved"), signatures=signatures)
    content = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved")).convert()
    (folder / "model.tflite").write_bytes(content)
    return folder / "model.tflite"


def rows(count, value):
    return np.full((count, 2), value, "float32")


def test_a_model_runs_by_name_with_any_number_of_rows(model_file):
    model = LiteRTModel(model_file, "to test it")
    assert (sorted(model.input_names), sorted(model.output_names)) == (
        ["x", "y"],
        ["double", "sum"],
    )
    for count in (1, 3, 2):
        outputs = model.run({"y": rows(count, 1), "x": rows(count, 3)})
        assert {name: array.tolist() for name, array in outputs.items()} == {
            "sum": [[4, 4]] * count,
            "double": [[6, 6]] * count,
        }


def test_outputs_are_not_overwritten_by_the_next_batch(model_file):
    infer = LiteRTModel(model_file, "to test it").run
    first = infer({"x": rows(1, 1), "y": rows(1, 0)})
    infer({"x": rows(1, 0), "y": rows(1, 0)})
    assert first["double"].tolist() == [[2, 2]]


def test_a_batch_of_a_wrong_shape_is_refused_and_the_next_one_runs(model_file):
    infer = LiteRTModel(model_file, "to test it").run
    with pytest.raises(InvalidInputError, match=r"LiteRT refuses a batch of {'x': \(2, 5\)"):
        infer({"x": np.ones((2, 5), "float32"), "y": np.ones((2, 5), "float32")})
    assert infer({"x": rows(3, 1), "y": rows(3, 0)})["double"].tolist() == [[2, 2]] * 3


def test_several_threads_share_a_model(model_file):
    infer = LiteRTModel(model_file, "to test it").run

    def check(count):
        outputs = infer({"x": rows(count, count), "y": rows(count, 0)})
        return outputs["double"].tolist() == [[2 * count, 2 * count]] * count

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(check, [1, 5, 2, 9, 3, 7] * 20))


def test_a_damaged_file_is_refused(tmp_path, model_file):
    path = tmp_path / "model.tflite"
    path.write_bytes(model_file.read_bytes()[:100])
    with pytest.raises(InvalidInputError, match=r"LiteRT can't load .*model\.tflite.*Export it"):
        LiteRTModel(path, "to test it")


def test_tensorflow_stands_in_for_litert(model_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    outputs = LiteRTModel(model_file, "to test it").run({"x": rows(2, 1), "y": rows(2, 1)})
    assert outputs["sum"].tolist() == [[2, 2]] * 2


def test_without_either_the_extra_is_named(tmp_path, monkeypatch):
    for module in ("ai_edge_litert", "ai_edge_litert.interpreter", "tensorflow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"to serve it.*keras_deepseek\[litert\]"):
        LiteRTModel(tmp_path / "model.tflite", "to serve it")


def test_no_framework_is_imported_where_litert_is_installed(model_file):
    pytest.importorskip("ai_edge_litert")
    script = """
import pathlib, sys
from keras_deepseek.backend.runtimes.litert_model import LiteRTModel
LiteRTModel(pathlib.Path(sys.argv[1]), "to test it")
print({"jax", "keras", "tensorflow", "torch"} & set(sys.modules))
"""
    command = [sys.executable, "-c", script, model_file]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
