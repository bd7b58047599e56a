import importlib.util
import os
import select
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.routes.route import FromProgram, InChild, InProcess, find_routes
from keras_deepseek.errors import ExportError, NotSupportedError


def other_backend():
    """Returns a backend that is installed and does not run."""
    other_backends = {"tensorflow", "jax", "torch"} - {keras.backend.backend()}
    installed = sorted(name for name in other_backends if importlib.util.find_spec(name))
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
    export_format.writes_programs = True
    assert find_routes(export_format) == [FromProgram(running), InProcess(running)]
    export_format.backends = tuple(name for name in ("torch", "jax") if name != running)
    assert find_routes(export_format)[1:] == [InChild(export_format.backends[0])]


SCRIPT = """
import keras, sys
from keras_deepseek.deploy import Exporter

@keras.saving.register_keras_serializable()
class Doubling(keras.layers.Layer):
    def call(self, inputs):
        return 2 * keras.ops.relu(inputs)

given = sys.argv[3:]
layers = [Doubling()]
if given:
    from keras_deepseek.backend.keras_private.keras_file import import_source
    import_source(given[0])
    layers.append(keras.saving.get_custom_objects()["Tripling"]())
model = keras.Sequential([keras.Input((4,)), *layers])
exporter = Exporter(model, sys.argv[1], verbose=False, custom_objects_from=given)
print(exporter.export(sys.argv[2]).verification.state)
"""

TRIPLING = """
import keras

class Tripling(keras.layers.Layer):
    def call(self, inputs):
        return 3 * inputs
"""


@pytest.mark.torch_alone
@pytest.mark.parametrize("with_a_file", [False, True])
def test_a_class_of_the_running_script_reaches_the_other_process(tmp_path, with_a_file):
    pytest.importorskip("cloudpickle")
    other = other_backend()
    if other != "tensorflow":
        pytest.skip("TensorFlow writes what this exports")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "tripling.py").write_text(TRIPLING)
    modules = [tmp_path / "tripling.py"] if with_a_file else []
    ended = subprocess.run(
        [sys.executable, script, "savedmodel", tmp_path / "out", *modules],
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
    from keras_deepseek.backend.keras_private.keras_file import import_source
    from keras_deepseek.deploy.formats.saved_model import SavedModelFormat

    source = tmp_path / "doubling_for_a_child.py"
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
        "running it on 2 batches, in a TensorFlow process",
    ]
    assert "saved_model.pb" in os.listdir(folder)
    for sample, outputs in zip(job.samples, result.outputs, strict=True):
        np.testing.assert_allclose(outputs["output_0"], 2 * sample["input_0"])


class WithoutConfig(keras.Model):
    """A model that another process can't recreate."""

    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.torch_alone
def test_a_model_without_a_config_is_sent_as_its_operations(tmp_path, tensorflow_installed):
    model = WithoutConfig(3)
    model(np.ones((2, 4), "float32"))
    assert Exporter(model, "savedmodel", verbose=False).export(tmp_path / "out").verified
    with pytest.raises(ExportError, match=r"WithoutConfig has no get_config\(\)"):
        Exporter(model, "savedmodel", precision="bfloat16", verbose=False).export(tmp_path / "half")


@pytest.mark.nightly
def test_what_a_child_leaves_among_temporary_files_is_removed(tmp_path, job_of):
    pytest.importorskip("cloudpickle")

    class Leaving:
        name, suffix, entry = "leaving", ".txt", "place.txt"

        def write(self, model, folder):
            import tempfile

            (folder / self.entry).write_text(tempfile.mkdtemp())
            return "by hand"

        def run(self, folder, samples):
            raise NotSupportedError("it is not run")

    InChild(other_backend()).export(job_of(Leaving()), tmp_path, print)
    leftover = Path((tmp_path / "place.txt").read_text())
    assert leftover.parent.name == "temporary"
    assert not leftover.parent.parent.exists()


WAITING_FOR_A_CHILD = """
import sys
from pathlib import Path
from keras_deepseek.deploy.routes.child_process import run_in_child

try:
    run_in_child(Path(sys.argv[1]), sys.argv[2], print)
finally:
    Path(sys.argv[1], "job.json").read_text()  # So that who writes there does not wait for ever.
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone watches others' processes")
def test_a_child_ends_with_the_process_that_started_it(tmp_path):
    job = tmp_path / "job.json"
    os.mkfifo(job)
    command = [sys.executable, "-c", WAITING_FOR_A_CHILD, tmp_path, keras.backend.backend()]
    with subprocess.Popen(command) as parent, job.open("w"):  # Open once the child reads its job.
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        watched = os.pidfd_open(int(child))
        try:
            ended = select.poll()
            ended.register(watched, select.POLLIN)
            assert not ended.poll(0)
            parent.kill()
            assert ended.poll(60_000)
        finally:
            os.close(watched)
