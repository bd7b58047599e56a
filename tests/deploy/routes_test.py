import os

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import ExportError, InvalidInputError, NotSupportedError
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.deploy.routes import ExportJob, TensorFlowProcessRoute, make_artifact
from keras_deepseek.deploy.samples import make_samples


class WeightsFormat:
    """A format of NumPy alone: the weights of one Dense layer, which `run` multiplies by."""

    name, suffix, entry = "weights", ".npz", "weights.npz"

    def __init__(self, spoil=0.0, fail=None):
        self.spoil = spoil
        self.fail = fail

    def write(self, model, folder):
        kernel, bias = model.model.get_weights()
        np.savez(folder / self.entry, kernel=kernel + self.spoil, bias=bias)
        return "NumPy"

    def run(self, folder, samples):
        if self.fail:
            raise self.fail
        with np.load(folder / self.entry) as weights:
            return [
                {"output_0": sample["input_0"] @ weights["kernel"] + weights["bias"]}
                for sample in samples
            ]


def job_of(export_format, model=None, **options):
    named = NamedModel(model or keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    samples = make_samples(named.model, named.signature)
    return ExportJob(named, export_format, {}, samples, **options)


def test_an_artifact_that_computes_the_same_is_verified(tmp_path):
    made = make_artifact(job_of(WeightsFormat()), tmp_path, print)
    assert made.verification.state == "verified"
    assert made.verification.num_samples == 3
    assert made.route == "NumPy"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one route, so one reason")
def test_an_artifact_that_differs_fails_and_is_removed(tmp_path):
    with pytest.raises(ExportError, match=r"through the tensorflow backend: .*differs by"):
        make_artifact(job_of(WeightsFormat(spoil=0.01)), tmp_path, print)
    assert not any(tmp_path.iterdir())


def test_a_model_that_gives_nan_alone_is_unverified(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    made = make_artifact(job_of(WeightsFormat(), model), tmp_path, print)
    assert made.verification.state == "unverified"
    assert "no finite value" in made.verification.reason


def test_what_can_not_be_run_here_is_unverified_with_its_reason(tmp_path):
    export_format = WeightsFormat(fail=NotSupportedError("it needs a GPU"))
    made = make_artifact(job_of(export_format), tmp_path, print)
    assert made.verification.state == "unverified"
    assert made.verification.reason == "it needs a GPU"


def test_an_artifact_that_breaks_fails_with_its_reason(tmp_path):
    with pytest.raises(ExportError, match="segment missing"):
        make_artifact(job_of(WeightsFormat(fail=OSError("segment missing"))), tmp_path, print)
    assert not any(tmp_path.iterdir())


def test_a_layer_of_the_running_script_asks_for_its_file(tmp_path, tensorflow_installed):
    layer_class = type("Notebook", (keras.layers.Identity,), {"__module__": "__main__"})
    model = keras.Sequential([keras.Input((4,)), layer_class()])
    with pytest.raises(InvalidInputError, match=r"Notebook: .*custom_objects_from"):
        TensorFlowProcessRoute().export(job_of(WeightsFormat(), model), tmp_path)


def test_without_tensorflow_the_extra_is_named(tmp_path, tensorflow_missing):
    with pytest.raises(ImportError, match=r"keras_deepseek\[tensorflow\]"):
        TensorFlowProcessRoute().export(job_of(WeightsFormat()), tmp_path)


LAYER_FILE = """
import keras

class Doubling(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
"""


def test_layers_from_a_file_reach_the_other_process(tmp_path, tensorflow_installed):
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
        result = TensorFlowProcessRoute().export(job, folder)
    finally:
        del keras.saving.get_custom_objects()["Doubling"]
    assert "saved_model.pb" in os.listdir(folder)
    for sample, outputs in zip(job.samples, result.outputs, strict=True):
        np.testing.assert_allclose(outputs["output_0"], 2 * sample["input_0"])
