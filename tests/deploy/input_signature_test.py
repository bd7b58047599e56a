import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy import Exporter
from keras_deepseek.errors import InvalidInputError


@keras.saving.register_keras_serializable("input_signature_test")
class Text(keras.Model):
    """A classifier of tokens, with as many positions as it says."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tokens = keras.layers.Embedding(50, 4)
        self.positions = keras.layers.Embedding(12, 4)
        self.scores = keras.layers.Dense(2)

    def call(self, tokens, scale=None):
        hidden = self.tokens(tokens) + self.positions(ops.arange(ops.shape(tokens)[1]))
        scores = self.scores(ops.mean(hidden, axis=1))
        return scores if scale is None else scores * scale


def make_text():
    model = Text()
    model(np.ones((1, 7), "int32"))
    return model


TOKENS = keras.InputSpec(shape=(None, None), dtype="int32")


@pytest.mark.usefixtures("tensorflow_installed")
@pytest.mark.parametrize("backend", ["onnx", "savedmodel"])
def test_a_subclassed_model_takes_any_length(tmp_path, backend):
    model = make_text()
    exporter = Exporter(model, backend, input_signature=[TOKENS], verbose=False)
    report = exporter.export(tmp_path / "text")
    assert report.verification.state == "verified"
    infer = exporter.load(tmp_path / "text")
    for shape in ((1, 3), (5, 12)):
        tokens = np.random.default_rng(0).integers(0, 50, shape, dtype="int32")
        (scores,) = infer({"tokens": tokens}).values()
        np.testing.assert_allclose(scores, model.predict(tokens, verbose=0), 1e-4, 1e-5)


def test_each_argument_of_call_has_its_place():
    model = make_text()
    scale = keras.InputSpec(shape=(None, 1))
    inputs = Exporter(model, "onnx", input_signature=[TOKENS, scale], verbose=False).signature
    assert [(spec.name, spec.shape, spec.dtype) for spec in inputs.inputs] == [
        ("tokens", (None, None), "int32"),
        ("scale", (None, 1), "float32"),
    ]


@pytest.mark.parametrize(
    ("signature", "match"),
    [
        (TOKENS, "must be a list with a keras.InputSpec for each argument"),
        ([], "must be a list with a keras.InputSpec for each argument"),
        ([keras.InputSpec(ndim=2)], "InputSpec objects with a shape"),
        ([(None, 7)], "InputSpec objects with a shape"),
        ([keras.InputSpec(shape=(None,), dtype="int32")], "does not take what"),
    ],
)
def test_another_signature_is_refused(signature, match):
    with pytest.raises(InvalidInputError, match=match):
        Exporter(make_text(), "onnx", input_signature=signature)


def test_a_graph_says_by_its_input_what_it_takes():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(InvalidInputError, match="are defined by its `Input`"):
        Exporter(model, "onnx", input_signature=[keras.InputSpec(shape=(None, 4))])


class Sentences(keras.Model):
    def __init__(self):
        super().__init__()
        self.tokens = keras.layers.Embedding(50, 4)
        self.memory = keras.layers.LSTM(3)

    def call(self, inputs):
        return self.memory(self.tokens(inputs))


def test_an_exporter_leaves_nothing_in_the_model():
    model, tokens = Sentences(), np.ones((2, 6), "int32")
    expected = model.predict(tokens, verbose=0)
    Exporter(model, "onnx", verbose=False)
    inputs = keras.Input((6,), dtype="int32")
    wrapped = keras.Model(inputs, model(inputs))
    np.testing.assert_allclose(wrapped.predict(tokens, verbose=0), expected, rtol=1e-6)
