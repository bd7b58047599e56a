"""Export from JAX and torch goes through TensorFlow: these tests ask for it where they need it."""

import importlib.util

import keras
import numpy as np
import pytest

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy import ExportFormat
from keras_deepseek.deploy.export_job import ExportJob
from keras_deepseek.deploy.formats.format_list import FORMATS
from keras_deepseek.deploy.formats.registry import DuckTypedFormat
from keras_deepseek.deploy.samples import make_samples


def build_digits() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits",
    )


def build_text() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    features = keras.layers.Embedding(11, 6, mask_zero=True)(tokens)
    return keras.Model(tokens, keras.layers.LSTM(5)(features), name="text")


def build_two_heads() -> keras.Model:
    left_input, right_input = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left_input, right_input])
    outputs = {"score": keras.layers.Dense(1)(both), "copy": keras.layers.Identity()(left_input)}
    return keras.Model({"left": left_input, "right": right_input}, outputs, name="two_heads")


def build_dense() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="dense")


BUILDERS = {"digits": build_digits, "text": build_text, "two heads": build_two_heads}


@pytest.fixture(params=BUILDERS)
def model(request):
    return BUILDERS[request.param]()


@pytest.fixture
def digits():
    return build_digits()


@pytest.fixture
def dense():
    return build_dense()


@pytest.fixture
def tensorflow_installed():
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow, which this export goes through, is not installed")


@pytest.fixture
def tensorflow_missing():
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is installed")


@pytest.fixture
def halving():
    """Returns a function to a model that takes images whose sides are multiples of a factor."""

    def make(factor):
        inputs = keras.Input((None, None, 1), name="image")
        small = keras.layers.AveragePooling2D(factor)(inputs)
        large = keras.layers.UpSampling2D(factor)(small)
        return keras.Model(inputs, keras.layers.Add()([inputs, large]))

    return make


class WeightsFormat(ExportFormat):
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


@pytest.fixture
def weights_format():
    return WeightsFormat


@pytest.fixture
def job_of():
    """Returns a function from a format, of any class, and a model or none, to a job."""

    def make(export_format, model=None, **options):
        named = NamedModel(model or build_dense())
        samples = make_samples(named.model, named.signature, lengths=(9, 13))
        if not isinstance(export_format, ExportFormat):
            export_format = DuckTypedFormat(export_format)
        made_with = {} if export_format.name in FORMATS else None
        return ExportJob(named, export_format, made_with, samples, **options)

    return make
