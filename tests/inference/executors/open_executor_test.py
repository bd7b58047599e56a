import importlib.util
import subprocess
import sys

import keras
import pytest

from keras_deepseek.artifacts import (
    BundleError,
    InvalidInputError,
    NotSupportedError,
    Verification,
)
from keras_deepseek.inference.executors import open_executor

RUNTIMES = {"onnx": "onnxruntime", "savedmodel": "tensorflow", "keras": "keras"}

SERVE_WITHOUT_KERAS = """
import sys
sys.modules["keras"] = None  # Whoever imports it now gets an ImportError.
from keras_deepseek.inference import ServingEngine
with ServingEngine(sys.argv[1]) as engine:
    print(engine.predict([[1, 2]]).tolist())
"""


@pytest.mark.parametrize("form", RUNTIMES)
def test_a_bundle_is_opened_by_its_format(bundle_of, rows, form):
    pytest.importorskip(RUNTIMES[form])
    executor = open_executor(bundle_of(form).path)
    assert executor.run(rows(1, 2))["y"][:, 0].tolist() == [2, 4]


def test_a_bundle_that_failed_its_verification_warns(bundle_of):
    pytest.importorskip("keras")
    bundle = bundle_of("keras", Verification("failed", "output 'y' differs by 3"))
    with pytest.warns(UserWarning, match=r"something else than its model: output 'y' differs by 3"):
        open_executor(bundle.path)


@pytest.mark.parametrize("form", ["onnx", "savedmodel"])
def test_a_bundle_is_served_where_keras_is_not_installed(bundle_of, form):
    if importlib.util.find_spec(RUNTIMES[form]) is None:
        pytest.skip(f"{RUNTIMES[form]} is not installed.")
    command = [sys.executable, "-c", SERVE_WITHOUT_KERAS, str(bundle_of(form).path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "[[2.0, 4.0]]\n", result.stderr


def test_importing_the_room_loads_no_framework_and_no_server():
    code = (
        "import sys, keras_deepseek.inference\n"
        "print({'keras', 'tensorflow', 'jax', 'torch', 'onnxruntime', 'httptools', 'uvloop'}"
        " & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


def test_a_live_model_and_a_keras_file_are_opened(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.save(tmp_path / "model.keras")
    expected = open_executor(model).signature
    assert open_executor(tmp_path / "model.keras").signature == expected
    assert open_executor(str(tmp_path / "model.keras")).signature == expected


def test_an_executor_is_taken_as_it_is(doubler):
    assert open_executor(doubler) is doubler


def test_a_bundle_that_no_executor_runs_is_refused(bundle_of):
    with pytest.raises(NotSupportedError, match=r"holds 'custom'.*onnx, savedmodel, openvino or"):
        open_executor(bundle_of("custom").path)


def test_a_damaged_bundle_is_refused(bundle_of):
    bundle = bundle_of("other")
    bundle.entry.write_bytes(b"changed")
    with pytest.raises(BundleError, match="altered"):
        open_executor(bundle.path)


def test_a_path_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"it does not exist\. Expected"):
        open_executor(tmp_path / "missing.keras")
    with pytest.raises(InvalidInputError, match=r"no model stands there"):
        open_executor(tmp_path)


def test_another_type_is_refused_with_what_is_expected(doubler):
    for model in (None, 3, type(doubler)):
        with pytest.raises(
            InvalidInputError, match=r"Can't serve .* Expected a built keras\.Model"
        ):
            open_executor(model)


def test_a_layer_of_keras_is_not_a_model():
    with pytest.raises(InvalidInputError, match=r"Expected a keras\.Model"):
        open_executor(keras.layers.Dense(1))


def test_custom_layers_of_a_file_come_from_the_module_that_is_named(tmp_path):
    import keras

    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "model.keras")
    with pytest.raises(InvalidInputError, match="no_such_module"):
        open_executor(tmp_path / "model.keras", ["no_such_module"])
    (tmp_path / "my_layers.py").write_text("import keras\n")
    open_executor(tmp_path / "model.keras", [tmp_path / "my_layers.py"])
