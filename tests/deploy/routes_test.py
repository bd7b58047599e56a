import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.deploy.routes import InChild, InProcess, find_routes


def other_backend():
    """Returns a backend that is installed and does not run."""
    others = {"tensorflow", "jax", "torch"} - {keras.backend.backend()}
    installed = sorted(name for name in others if importlib.util.find_spec(name))
    if not installed:
        pytest.skip("no other backend is installed")
    return installed[0]


def test_the_backends_of_a_format_are_tried_in_their_order(weights_format):
    running = keras.backend.backend()
    assert find_routes(weights_format()) == [InProcess(running)]
    export_format = weights_format()
    export_format.backends = ("torch", "jax", "tensorflow")
    expected = [
        InProcess(name) if name == running else InChild(name) for name in export_format.backends
    ]
    assert find_routes(export_format) == expected


SCRIPT = """
import keras, sys
from keras_deepseek.deploy import Exporter

@keras.saving.register_keras_serializable()
class Doubling(keras.layers.Layer):
    def call(self, inputs):
        return 2 * keras.ops.relu(inputs)

model = keras.Sequential([keras.Input((4,)), Doubling()])
print(Exporter(model, sys.argv[1], verbose=False).export(sys.argv[2]).verification.state)
"""


def test_a_class_of_the_running_script_reaches_the_other_process(tmp_path):
    pytest.importorskip("cloudpickle")
    other = other_backend()
    if other != "tensorflow":
        pytest.skip("TensorFlow writes what this exports")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, script, "savedmodel", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.strip() == "verified", ended.stderr


LAYER_FILE = """
import keras

class Doubling(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
"""


def test_layers_from_a_file_reach_the_other_process(tmp_path, tensorflow_installed, job_of):
    from keras_deepseek.backend.keras_file import import_source
    from keras_deepseek.deploy.formats.saved_model import SavedModelFormat

    source = tmp_path / "doubling_layer.py"
    source.write_text(LAYER_FILE)
    import_source(source)
    try:
        layer_class = keras.saving.get_custom_objects()["Doubling"]
        model = keras.Sequential([keras.Input((4,)), layer_class()])
        job = job_of(SavedModelFormat(), model, custom_objects_from=[source])
        folder = tmp_path / "artifact"
        folder.mkdir()
        stages: list[str] = []
        result = InChild("tensorflow").export(job, folder, stages.append)
    finally:
        del keras.saving.get_custom_objects()["Doubling"]
    assert stages == [
        "starting a TensorFlow process",
        "writing, in a TensorFlow process",
        "running it on 3 batches, in a TensorFlow process",
    ]
    assert "saved_model.pb" in os.listdir(folder)
    for sample, outputs in zip(job.samples, result.outputs, strict=True):
        np.testing.assert_allclose(outputs["output_0"], 2 * sample["input_0"])
