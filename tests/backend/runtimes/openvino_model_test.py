import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from keras_deepseek.backend.runtimes.openvino_model import OpenVINOModel, import_openvino
from keras_deepseek.errors import InvalidInputError, MissingExtraError


@pytest.fixture
def model_file(tmp_path):
    """Writes a model that adds what it has two names for, and twice the first."""
    if find_spec("openvino") is None:  # `importorskip` would import its telemetry, which forks.
        pytest.skip("openvino is not installed")
    openvino = import_openvino("to test it")
    opset = openvino.opset13
    x = opset.parameter([-1, 2], np.float32, name="x")
    y = opset.parameter([-1, 2], np.float32, name="y")
    for parameter, name in ((x, "x"), (y, "y")):
        parameter.output(0).set_names({name})
    results = [opset.add(x, y), opset.multiply(x, opset.constant(np.float32(2)))]
    for result, name in zip(results, ("sum", "double"), strict=True):
        result.output(0).set_names({name})
    openvino.save_model(openvino.Model(results, [x, y]), tmp_path / "model.xml")
    return tmp_path / "model.xml"


def test_a_model_runs_by_name_with_any_number_of_rows(model_file):
    infer = OpenVINOModel(model_file, "to test it").run
    for rows in (1, 3, 2):
        x = np.full((rows, 2), 3, "float32")
        outputs = infer({"y": np.ones((rows, 2), "float32"), "x": x})
        assert {name: array.tolist() for name, array in outputs.items()} == {
            "sum": [[4, 4]] * rows,
            "double": [[6, 6]] * rows,
        }


def test_its_names_are_known(model_file):
    model = OpenVINOModel(model_file, "to test it")
    assert (model.input_names, model.output_names) == (["x", "y"], ["sum", "double"])


def test_outputs_are_not_overwritten_by_the_next_batch(model_file):
    infer = OpenVINOModel(model_file, "to test it").run
    y = np.zeros((1, 2), "float32")
    first = infer({"x": np.ones((1, 2), "float32"), "y": y})
    infer({"x": np.zeros((1, 2), "float32"), "y": y})
    assert first["double"].tolist() == [[2, 2]]


def test_a_damaged_file_is_refused(model_file):
    model_file.write_text("<net")
    with pytest.raises(InvalidInputError, match=r"OpenVINO can't load .*model\.xml.*Export it"):
        OpenVINOModel(model_file, "to test it")


def test_a_file_without_its_weights_is_refused(model_file):
    model_file.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="OpenVINO can't load"):
        OpenVINOModel(model_file, "to test it")


def test_without_openvino_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"to serve it.*keras_deepseek\[openvino\]"):
        OpenVINOModel(tmp_path / "model.xml", "to serve it")


def test_nothing_is_reported_to_its_makers():
    """Its telemetry forks the process to send, which JAX's threads may not survive."""
    pytest.importorskip("openvino_telemetry")
    script = """
from keras_deepseek.backend.runtimes.openvino_model import import_openvino
import_openvino("to test it")
import openvino.tools.ovc
print(type(openvino.tools.ovc.telemetry).__module__)
import openvino_telemetry
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_a_signal_after_the_older_of_two_models_is_heeded(model_file):
    """OpenVINO puts a stack for signals in place, and put one back that it had freed."""
    script = """
import pathlib, signal, sys
from keras_deepseek.backend.runtimes.openvino_model import OpenVINOModel
signal.signal(signal.SIGTERM, lambda *_: print("heeded"))
older, newer = (OpenVINOModel(pathlib.Path(sys.argv[1]), "to test it") for _ in range(2))
del older
del newer
signal.raise_signal(signal.SIGTERM)
"""
    command = [sys.executable, "-c", script, model_file]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "heeded\n"
