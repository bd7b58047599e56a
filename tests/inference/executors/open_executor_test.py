import importlib.util
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import (
    BundleError,
    InvalidInputError,
    NotSupportedError,
    Verification,
)
from keras_deepseek.deploy import Exporter, register_exporter
from keras_deepseek.deploy.formats import registry
from keras_deepseek.deploy.formats.openvino import OpenVINOFormat
from keras_deepseek.inference import Executor, ServingEngine
from keras_deepseek.inference.executors import open_executor
from tests.inference.conftest import DOUBLE, Doubler

RUNTIMES = {
    "onnx": "onnxruntime",
    "savedmodel": "tensorflow",
    "openvino": "openvino",
    "litert": "ai_edge_litert",
    "keras": "keras",
}
REAL = {
    "a bundle of ONNX": ("onnx", "."),
    "a bundle of a SavedModel": ("savedmodel", "."),
    "a bundle of OpenVINO": ("openvino", "."),
    "a bundle of LiteRT": ("litert", "."),
    "an ONNX file": ("onnx", "model.onnx"),
    "a SavedModel": ("savedmodel", None),
}
"""What is exported, and the part of it that is served; `None`: all, without the manifest."""

SERVE_WITHOUT_KERAS = """
import sys
sys.modules["keras"] = None  # Whoever imports it now gets an ImportError.
from keras_deepseek.inference import ServingEngine
with ServingEngine(sys.argv[1]) as engine:
    print(engine.predict([[1, 2]]).tolist())
"""


def skip_without(package):
    # `importorskip` would import OpenVINO's telemetry, which forks.
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed.")


@pytest.mark.parametrize("form", RUNTIMES)
def test_a_bundle_is_opened_by_its_format(bundle_of, rows, form):
    skip_without(RUNTIMES[form])
    executor = open_executor(bundle_of(form).path)
    assert executor.run(rows(1, 2))["y"][:, 0].tolist() == [2, 4]


def test_a_bundle_that_failed_its_verification_warns(bundle_of):
    pytest.importorskip("keras")
    bundle = bundle_of("keras", Verification("failed", "output 'y' differs by 3"))
    with pytest.warns(
        UserWarning, match=r"does not compute what its model computed: output 'y' differs by 3"
    ):
        open_executor(bundle.path)


@pytest.mark.parametrize("form", ["onnx", "savedmodel", "openvino", "litert"])
def test_a_bundle_is_served_where_keras_is_not_installed(bundle_of, form):
    skip_without(RUNTIMES[form])
    command = [sys.executable, "-c", SERVE_WITHOUT_KERAS, str(bundle_of(form).path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "[[2.0, 4.0]]\n", result.stderr


def test_importing_the_room_loads_no_framework_and_no_server():
    code = (
        "import sys, keras_deepseek.inference\n"
        "print({'keras', 'tensorflow', 'jax', 'torch', 'onnxruntime', 'openvino', 'tensorrt',"
        " 'httptools', 'uvicorn', 'uvloop'}"
        " & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


IMAGES = np.random.default_rng(0).random((32, 8, 8, 1)).astype("float32")


def build_digits(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits",
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports two models of other weights, each once in each format that is asked for."""
    models, done = [build_digits(1), build_digits(2)], {}

    def export(form):
        if form not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(registry, "_registered", {})
                register_exporter(OpenVINOFormat())
                done[form] = [tmp_path_factory.mktemp(form) / str(number) for number in (1, 2)]
                for model, path in zip(models, done[form], strict=True):
                    Exporter(model, form, verbose=False).export(path)
        return models, done[form]

    return export


@pytest.fixture(params=REAL)
def real(request, exported, tmp_path):
    """Returns two real models, and the paths of what is served of them."""
    form, part = REAL[request.param]
    for package in ("tensorflow", "onnxruntime", RUNTIMES[form]):
        skip_without(package)
    models, paths = exported(form)
    if part is None:
        copies = [tmp_path / path.name for path in paths]
        for path, copy in zip(paths, copies, strict=True):
            shutil.copytree(path, copy, ignore=lambda *_: ["bundle.json"])
        return models, copies
    return models, [path / part for path in paths]


def expected_of(model, x=IMAGES):
    return model.predict(x, verbose=0)


def test_a_real_model_s_served_batch_is_bit_equal_to_its_executor_s(real):
    (model, _), (path, _) = real
    direct = open_executor(path)
    assert direct.signature == open_executor(model).signature
    with ServingEngine(path, max_batch_size=16) as engine:
        for rows, size in ((16, 16), (8, 8), (5, 8), (1, 1)):
            filled = np.concatenate([IMAGES[:rows], IMAGES[[rows - 1] * (size - rows)]])
            served = engine.predict(IMAGES[:rows])
            expected = direct.run({"image": filled})["probabilities"][:rows]
            np.testing.assert_array_equal(served, expected)
            np.testing.assert_allclose(served, expected_of(model, IMAGES[:rows]), atol=1e-5)


def test_a_real_model_is_served_by_two_replicas_and_reloaded_while_it_is_asked(real):
    models, paths = real
    old_rows, new_rows = map(expected_of, models)
    done = threading.Event()

    def ask(index):
        answers = []
        while not done.is_set():
            answers.append(engine.predict(IMAGES[index : index + 1])[0])
        return answers

    with (
        ServingEngine(paths[0], replicas=2, max_batch_size=4) as engine,
        ThreadPoolExecutor(4) as pool,
    ):
        np.testing.assert_allclose(engine.predict(IMAGES), old_rows, atol=1e-5)
        futures = [pool.submit(ask, index) for index in range(4)]
        try:
            engine.load(paths[1])
        finally:
            done.set()
        for index, future in enumerate(futures):
            for answer in future.result():
                fits = [
                    np.allclose(answer, rows[index], atol=1e-5) for rows in (old_rows, new_rows)
                ]
                assert any(fits)
        np.testing.assert_allclose(engine.predict(IMAGES), new_rows, atol=1e-5)
        assert engine.statistics().replicas == 2


def test_a_live_model_and_a_keras_file_are_opened(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.save(tmp_path / "model.keras")
    expected = open_executor(model).signature
    assert open_executor(tmp_path / "model.keras").signature == expected
    assert open_executor(str(tmp_path / "model.keras")).signature == expected


def test_a_subclass_of_executor_is_taken_as_it_is():
    class Subclass(Doubler, Executor):
        signature = DOUBLE

    executor = Subclass()
    assert open_executor(executor) is executor


def test_an_object_with_a_signature_and_run_is_wrapped(doubler, rows):
    executor = open_executor(doubler)
    assert isinstance(executor, Executor)
    assert executor.signature is doubler.signature
    assert executor.run(rows(3))["y"][:, 0].tolist() == [6]
    executor.prepare_to_close()
    executor.close()
    assert not executor.is_isolated


def test_a_bundle_that_no_executor_runs_is_refused(bundle_of):
    with pytest.raises(
        NotSupportedError,
        match=r"for the format 'custom'\. Export .* as keras, litert, onnx, openv",
    ):
        open_executor(bundle_of("custom").path)


def test_a_damaged_bundle_is_refused(bundle_of):
    bundle = bundle_of("other")
    bundle.entry.write_bytes(b"changed")
    with pytest.raises(BundleError, match="altered"):
        open_executor(bundle.path)


def test_a_path_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"it does not exist\. Expected"):
        open_executor(tmp_path / "missing.keras")
    with pytest.raises(InvalidInputError, match=r"no model was found there"):
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
