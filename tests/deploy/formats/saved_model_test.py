import importlib

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.saved_model_writer import _ExampleSignatures
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.formats.saved_model import SavedModelFormat, write_warmup_requests
from keras_deepseek.errors import ExportError, InvalidInputError, NotSupportedError

IN_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow writes a SavedModel")
def test_saved_model_runs_at_any_batch_size(digits, tmp_path):
    export_format = SavedModelFormat()
    export_format.write(NamedModel(digits), tmp_path)
    batches = [{"image": np.ones((size, 8, 8, 1), "float32")} for size in (1, 6)]
    for batch, outputs in zip(batches, export_format.run(tmp_path, batches), strict=True):
        np.testing.assert_allclose(
            outputs["probabilities"], digits.predict(batch["image"], verbose=0), atol=1e-6
        )


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow reads examples")
@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "SavedModel with serving_default"),
        ({"classify": True}, "SavedModel with serving_default, serving_classify"),
    ],
)
def test_signatures_and_warmup_requests_are_as_asked(digits, tmp_path, options, how):
    import tensorflow as tf

    assert SavedModelFormat(**options).write(NamedModel(digits), tmp_path) == how
    assert (tmp_path / "assets.extra" / "tf_serving_warmup_requests").is_file()
    signatures = tf.saved_model.load(str(tmp_path)).signatures
    assert set(signatures) == set(how.removeprefix("SavedModel with ").split(", "))


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow writes a SavedModel here")
def test_there_need_be_no_warmup_request(digits, tmp_path):
    SavedModelFormat(warmup=False).write(NamedModel(digits), tmp_path)
    assert not (tmp_path / "assets.extra").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"classify": "cat"}, "`classify` must be a boolean, or a list"),
        ({"regress": "yes"}, "`regress` must be"),
        ({"warmup": 3}, "`warmup` must be"),
    ],
)
def test_arguments_that_say_nothing_are_refused(options, match):
    with pytest.raises(InvalidInputError, match=match):
        SavedModelFormat(**options)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the others write it")
def test_pytorch_passes_it_on(digits, tmp_path):
    with pytest.raises(NotSupportedError):
        SavedModelFormat().write(NamedModel(digits), tmp_path)


def build_price():
    x, count = keras.Input((2, 3), name="x"), keras.Input((2,), dtype="int32", name="count")
    both = keras.layers.Concatenate()([keras.layers.Flatten()(x), keras.ops.cast(count, "float32")])
    return keras.Model([x, count], keras.layers.Dense(1, name="price")(both), name="price")


def test_signatures_of_examples_are_verified(digits, tmp_path, tensorflow_installed):
    names = [f"class {index}" for index in range(10)]
    exporters = {
        "serving_classify": Exporter(digits, "savedmodel", classify=names, verbose=False),
        "serving_regress": Exporter(build_price(), "savedmodel", regress=True, verbose=False),
    }
    for name, exporter in exporters.items():
        report = exporter.export(tmp_path / name)
        assert report.verified
        assert report.verification.signatures == ("serving_default", name)
        assert f"batches by serving_default, {name}, largest" in str(report)
        assert Bundle.open(tmp_path / name).manifest.verification == report.verification
        assert exporter.check(tmp_path / name).verification.signatures == ("serving_default", name)


def test_in_less_precision_it_is_verified_too(digits, tmp_path, tensorflow_installed):
    exporter = Exporter(digits, "savedmodel", classify=True, precision="float16", verbose=False)
    agreement = exporter.export(tmp_path / "half").verification.agreement
    assert 0 < agreement["serving_classify"]["relative_error"] < 1e-2


def test_a_signature_that_nothing_is_known_of_is_not_checked(
    digits, tmp_path, tensorflow_installed
):
    exporter = Exporter(digits, "savedmodel", classify=True, verbose=False)
    exporter.export(tmp_path / "digits")
    verification = (
        Exporter(digits, "savedmodel", verbose=False).check(tmp_path / "digits").verification
    )
    assert verification.state == "unverified"
    assert verification.reason.startswith("it has serving_classify: pass classify=")
    other = Exporter(digits, "savedmodel", classify=[*"abcdefghij"], verbose=False)
    with pytest.raises(ExportError, match="does not name the class 'a' once in each row"):
        other.check(tmp_path / "digits")


def _swap(self, inputs):
    outputs = classify(self, inputs)
    return {"classes": outputs["classes"][:, ::-1], "scores": outputs["scores"]}


def _only_serving(self, inputs):
    """Gives other scores than `serving_default`."""
    outputs = classify(self, inputs)
    return {"classes": outputs["classes"], "scores": outputs["scores"] * 0.99 + 0.001}


def _shift(self, inputs):
    return {"outputs": regress(self, inputs)["outputs"] + 0.5}


classify, regress = _ExampleSignatures._classify, _ExampleSignatures._regress


@pytest.mark.skipif(not IN_TENSORFLOW, reason="it is written in this process by TensorFlow alone")
@pytest.mark.parametrize(
    ("kind", "wrong"), [("classify", _swap), ("classify", _only_serving), ("regress", _shift)]
)
def test_a_wrong_one_fails_and_leaves_nothing(digits, tmp_path, monkeypatch, kind, wrong):
    monkeypatch.setattr(_ExampleSignatures, f"_{kind}", wrong)
    model = digits if kind == "classify" else build_price()
    exporter = Exporter(model, "savedmodel", verbose=False, **{kind: True})
    with pytest.raises(ExportError, match=rf"Output 'serving_{kind}'.* differs by"):
        exporter.export(tmp_path / "wrong")
    assert not any(tmp_path.iterdir())


def looking_up(**options):
    x = keras.Input((3,), dtype="int64", name="x")
    layer = keras.layers.IntegerLookup(vocabulary=[700, 500, 900], **options)
    return keras.Model(x, keras.layers.Embedding(layer.vocabulary_size(), 2)(layer(x)))


def binning():
    x = keras.Input((3,), name="x")
    bins = keras.layers.Discretization([100.0, 200.0, 300.0])(x)
    return keras.Model(x, keras.layers.Embedding(4, 2)(bins))


def encoding():
    x = keras.Input((3,), name="x")
    encoded = keras.layers.CategoryEncoding(4, output_mode="multi_hot")(x)
    return keras.Model(x, keras.layers.Dense(2)(encoded))


@pytest.mark.skipif(not IN_TENSORFLOW, reason="TensorFlow alone has the tables in a graph")
@pytest.mark.parametrize(
    "build",
    [
        looking_up,
        lambda: looking_up(num_oov_indices=0),
        lambda: looking_up(mask_token=0),
        binning,
        encoding,
    ],
)
def test_layers_with_a_vocabulary_are_verified(tmp_path, build):
    assert Exporter(build(), "savedmodel", verbose=False).export(tmp_path / "model").verified


def fields(data):
    """Returns the fields of a message, each with its number: a reader of its own."""

    def varint(position):
        value = shift = 0
        while True:
            byte = data[position]
            value |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                return value, position

    entries, position = [], 0
    while position < len(data):
        tag, position = varint(position)
        assert tag & 7 == 2
        length, position = varint(position)
        entries.append((tag >> 3, data[position : position + length]))
        position += length
    assert position == len(data)
    return entries


def test_each_record_asks_serving_default_for_a_prediction(tmp_path):
    tf = pytest.importorskip("tensorflow")
    tensor_pb2 = importlib.import_module("tensorflow.core.framework.tensor_pb2")
    generator = np.random.default_rng(0)
    samples = [
        {"x": generator.normal(size=(rows, 40)).astype("float32"), "n": np.arange(rows)}
        for rows in (1, 3)
    ]
    write_warmup_requests(tmp_path, "digits", samples)
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert len(records) == len(samples)
    for record, sample in zip(records, samples, strict=True):
        ((log_number, log),) = fields(record)
        ((request_number, request),) = fields(log)
        assert (log_number, request_number) == (6, 1)
        (spec_number, spec), *inputs = fields(request)
        assert spec_number == 1
        assert fields(spec) == [(1, b"digits"), (3, b"serving_default")]
        received = {}
        for number, entry in inputs:
            (_, key), (_, value) = fields(entry)
            assert number == 2
            tensor = tensor_pb2.TensorProto.FromString(value)
            received[key.decode()] = tf.make_ndarray(tensor)
        assert received.keys() == sample.keys()
        for name, array in sample.items():
            np.testing.assert_array_equal(received[name], array)
