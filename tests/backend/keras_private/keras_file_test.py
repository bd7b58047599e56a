import resource
import subprocess
import sys
import tracemalloc
from zipfile import ZIP_DEFLATED, ZipFile

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.keras_file import import_source, load_keras_file
from keras_deepseek.errors import InvalidInputError

LAYER_FILE = """
import keras

class Doubling(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs

def plus_one(inputs):
    return inputs + 1
"""

SAVE = """
import sys
sys.path.insert(0, sys.argv[1])
import keras, doubling_layer
model = keras.Sequential([keras.Input((2,)), doubling_layer.Doubling()])
model.save(sys.argv[1] + "/custom.keras")
"""


def test_a_model_comes_back_without_its_training(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("adam", "mse")
    model.save(tmp_path / "model.keras")
    loaded = load_keras_file(tmp_path / "model.keras")
    x = np.ones((1, 2), "float32")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert not loaded.compiled


@pytest.mark.nightly
def test_our_own_layers_are_found_without_being_named(tmp_path):
    script = (
        "import sys, keras; from keras_deepseek.layers import SwiGLU;"
        "keras.Sequential([keras.Input((2,)), SwiGLU(4)]).save(sys.argv[1])"
    )
    path = str(tmp_path / "model.keras")
    subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True)
    load = (
        "import sys; from keras_deepseek.backend.keras_private.keras_file import load_keras_file;"
        "assert 'keras_deepseek.layers' not in sys.modules;"
        "print(type(load_keras_file(sys.argv[1]).layers[-1]).__name__)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", load, path], check=True, capture_output=True, text=True
    )
    assert loaded.stdout.strip() == "SwiGLU"


@pytest.mark.torch_alone
def test_custom_layers_come_from_the_file_that_is_named(tmp_path):
    (tmp_path / "doubling_layer.py").write_text(LAYER_FILE)
    subprocess.run([sys.executable, "-c", SAVE, tmp_path], check=True, capture_output=True)
    with pytest.raises(InvalidInputError, match=r"'Doubling' is not one of.*custom-objects-from"):
        load_keras_file(tmp_path / "custom.keras")
    model = load_keras_file(tmp_path / "custom.keras", [tmp_path / "doubling_layer.py"])
    try:
        np.testing.assert_array_equal(model.predict(np.ones((1, 2)), verbose=0), [[2.0, 2.0]])
    finally:
        del keras.saving.get_custom_objects()["Doubling"]
        del sys.modules["doubling_layer"]


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"model\.keras"):
        load_keras_file(path)


def write_keras_file(path, member="config.json", blanks=0):
    """Writes a small file with many blanks in a member, packed as well as zip can."""
    block = b" " * 2**20
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", b"{}")
        with archive.open(member, "w") as file:
            for _ in range(blanks):
                file.write(block)


@pytest.mark.torch_alone
@pytest.mark.parametrize(
    ("member", "blanks", "message"),
    [
        ("config.json", 65, r"'config\.json' in it has 68157440 bytes. Expected at most 67108864"),
        ("config.json", 8, r"'config\.json' in it has 8388608 bytes, packed into \d+"),
        ("model.weights.h5", 8, r"'model\.weights\.h5' in it has 8388608 bytes, packed"),
    ],
)
def test_a_small_file_that_would_take_much_memory_is_refused(tmp_path, member, blanks, message):
    path = tmp_path / "model.keras"
    write_keras_file(path, member, blanks)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        old_size, _ = tracemalloc.get_traced_memory()
        with pytest.raises(InvalidInputError, match=message):
            load_keras_file(path)
        peak = tracemalloc.get_traced_memory()[1] - old_size
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.nightly
def test_600_megabytes_of_blanks_are_refused_too(tmp_path):
    path = tmp_path / "model.keras"
    write_keras_file(path, blanks=600)
    old_size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInputError, match="has 629145600 bytes"):
        load_keras_file(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{path.stat().st_size} bytes, peak {old_size // 1024} to {peak // 1024} MB")
    assert peak < old_size + 20 * 1024


@pytest.mark.parametrize("source", ["no_such_module", "no_such_file.py"])
def test_a_source_that_is_missing_is_named(source):
    with pytest.raises(InvalidInputError, match=source):
        import_source(source)


@pytest.mark.parametrize("content", ["raise RuntimeError('boom')", "undefined", "def"])
def test_a_source_that_fails_says_why_and_leaves_nothing(tmp_path, content):
    (tmp_path / "failing_layers.py").write_text(content)
    with pytest.raises(InvalidInputError, match=r"failing_layers\.py': \w+Error"):
        import_source(tmp_path / "failing_layers.py")
    assert "failing_layers" not in sys.modules


def test_a_file_does_not_take_the_place_of_another_module(tmp_path):
    import random

    (tmp_path / "random.py").write_text("")
    with pytest.raises(InvalidInputError, match="rename the file"):
        import_source(tmp_path / "random.py")
    assert sys.modules["random"] is random


def test_an_unregistered_class_is_found_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "module_of_layers.py").write_text(LAYER_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    import module_of_layers

    layers = [module_of_layers.Doubling(), keras.layers.Activation(module_of_layers.plus_one)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.save(tmp_path / "custom.keras")
    with pytest.raises(InvalidInputError, match="'Doubling' is not one of Keras's own"):
        load_keras_file(tmp_path / "custom.keras")
    custom_objects = dict(keras.saving.get_custom_objects())
    try:
        loaded = load_keras_file(tmp_path / "custom.keras", ["module_of_layers"])
    finally:
        keras.saving.get_custom_objects().clear()
        keras.saving.get_custom_objects().update(custom_objects)
    np.testing.assert_array_equal(loaded.predict(np.ones((1, 2)), verbose=0), [[3, 3]])
