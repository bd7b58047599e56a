import importlib.util
import re

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.backend import tensor_values
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.formats.onnx import OnnxFormat
from keras_deepseek.deploy.onnx_passes import graph_view, onnx_file
from keras_deepseek.deploy.samples import make_samples
from keras_deepseek.errors import (
    ExportError,
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
)

IN_TENSORFLOW = keras.backend.backend() == "tensorflow"


def write(export_format, model, folder, precision=None):
    """Writes an ONNX file from the program of a model."""
    named = NamedModel(model, precision)
    return export_format.write_program(named, make_samples(model, named.signature)[0], folder)


@pytest.mark.parametrize("opset", [18, 25])
def test_names_and_free_axes_are_the_models(digits, tmp_path, opset):
    import onnx

    write(OnnxFormat(opset), digits, tmp_path)
    proto = onnx.load(tmp_path / "model.onnx")
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [opset]
    graph = proto.graph
    (value,) = graph.input
    assert value.name == "image"
    assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in graph.output] == ["probabilities"]
    assert (proto.producer_name, graph.name) == ("keras_deepseek", "digits")
    assert {entry.key: entry.value for entry in proto.metadata_props} == {
        "name": "digits",
        "precision": "float32",
        "inputs": "image: float32 (any, 8, 8, 1)",
        "outputs": "probabilities: float32 (any, 10)",
    }


@pytest.mark.parametrize("fused", [True, False])
def test_masked_attention_is_fused_or_left_as_written(tmp_path, fused):
    import onnx

    tokens = keras.Input((None,), name="tokens", dtype="int32")
    x = keras.layers.Embedding(50, 16, mask_zero=True)(tokens)
    x = keras.layers.MultiHeadAttention(2, 8)(x, x)
    model = keras.Model(tokens, keras.layers.Dense(12, activation="gelu")(x))
    write(OnnxFormat(opset=23, fused=fused), model, tmp_path)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert ("Attention" in kinds, "Softmax" in kinds) == (fused, not fused)
    assert Exporter(model, "onnx", opset=23, fused=fused, verbose=0).export(tmp_path / "m").verified


def test_unchosen_values_may_be_infinite(tmp_path):
    x = keras.Input((4,), name="x")
    chosen = keras.ops.where(x > 0, keras.ops.log(keras.ops.maximum(x, 0.0)), 0.0)
    write(OnnxFormat(), keras.Model(x, chosen), tmp_path)
    (outputs,) = OnnxFormat().run(tmp_path, [{"x": np.array([[-1.0, 0.0, 1.0, 2.0]], "float32")}])
    np.testing.assert_allclose(outputs["output_0"], [[0, 0, 0, np.log(2)]], atol=1e-6)


def build_encoder() -> keras.Model:
    tokens = keras.Input((None,), name="tokens", dtype="int32")
    x = keras.layers.Embedding(50, 16)(tokens)
    x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(2, 8)(x, x))
    return keras.Model(tokens, keras.layers.Dense(12, activation="gelu")(x))


def test_weights_beyond_one_file_are_written_by_the_table_alone(monkeypatch):
    encoder = NamedModel(build_encoder())
    OnnxFormat().check_backend(encoder, "tensorflow")
    monkeypatch.setattr(tensor_values, "LARGEST_FILE", 1_000)
    with pytest.raises(NotSupportedError, match=r"one file, which holds 2 GB, and .* 0\.0 GB"):
        OnnxFormat().check_backend(encoder, "torch")
    OnnxFormat().check_backend(encoder, "program")
    for export_format, model in (
        (OnnxFormat(), encoder.in_precision("bfloat16")),
        (OnnxFormat(calibration=[]), encoder),
        (OnnxFormat(products_in_float16=True), encoder),
    ):
        with pytest.raises(
            NotSupportedError, match=r"is not supported for weights beyond the 2 GB"
        ):
            export_format.check_backend(model, "program")


def wrong_tanh(writer, node, x):
    return writer.add("Sigmoid", writer.name(x))


@pytest.mark.skipif(not IN_TENSORFLOW, reason="the next route of the others is another process")
@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (
            None,
            r"operation Tanh of layer 'squash' can't be written as ONNX: the table has no entry",
        ),
        (wrong_tanh, "Output 'squash' of batch 0: differs by"),
    ],
)
def test_what_the_table_can_not_write_goes_on_to_the_next_route(
    tmp_path, monkeypatch, handler, reason
):
    from keras_deepseek.deploy.onnx_writer.writer import TABLE, Entry

    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(3, activation="tanh", name="squash")(x))
    if handler is None:
        monkeypatch.delitem(TABLE, "Tanh")
    else:
        monkeypatch.setitem(TABLE, "Tanh", Entry(handler, ""))
    report = Exporter(model, "onnx", verbose=0).export(tmp_path / "model")
    assert report.verified
    (passed_over,) = report.passed_over
    assert re.match(f"through the traced program: {reason}", passed_over)
    monkeypatch.undo()
    report = Exporter(model, "onnx", verbose=0).export(tmp_path / "model")
    assert report.passed_over == ()
    assert report.route.endswith(", the traced program")


def test_without_onnx_the_extra_is_named(digits, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(graph_view.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[onnx\]"):
        write(OnnxFormat(), digits, tmp_path)


def test_missing_kernels_of_onnxruntime_are_no_verification_by_another(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]>
        sum (float[] x) => (float[] y) {
            small = Cast <to = 12> (x)  summed = ReduceSum (small)  y = Cast <to = 1> (summed)
        }""")
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        OnnxFormat().run(tmp_path, [{"x": np.ones((2, 4), "float32")}])


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_output_of_an_inputs_name_is_refused_before_work_is_done(backend, tmp_path, capsys):
    inputs = {"score": keras.Input((3,), name="score")}
    model = keras.Model(inputs, {"score": keras.layers.Dense(2)(inputs["score"])})
    with pytest.raises(InvalidInputError, match="of an input and of an output: score"):
        Exporter(model, backend).export(tmp_path / "model")
    assert capsys.readouterr().out == ""
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it changes this process")
def test_weights_beyond_one_file_ask_for_a_folder(digits, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 1_000)
    exporter = Exporter(digits, "onnx", verbose=False)
    with pytest.raises(ExportError, match=r"can't hold this model.*export\('digits'\)"):
        exporter.export(tmp_path / "digits.onnx")
    assert not any(tmp_path.iterdir())
    assert exporter.export(tmp_path / "digits").verified
    assert (tmp_path / "digits" / "model.onnx.data").is_file()
    assert exporter.check(tmp_path / "digits").verified
    session = onnxruntime.InferenceSession(Bundle.open(tmp_path / "digits").entry)
    assert session.run(None, {"image": np.zeros((2, 8, 8, 1), "float32")})[0].shape == (2, 10)


def test_an_onnx_file_is_the_same_each_time(model, tmp_path, tensorflow_installed):
    for file_name in ("first.onnx", "second.onnx"):
        Exporter(model, "onnx", verbose=False).export(tmp_path / file_name)
    first, second = ((tmp_path / f"{name}.onnx").read_bytes() for name in ("first", "second"))
    assert first == second


def test_bfloat16_goes_by_the_opset_that_has_it(digits, tmp_path, tensorflow_installed):
    exporter = Exporter(digits, "onnx", precision="bfloat16", verbose=False)
    with pytest.raises(InvalidInputError, match=r"no Conv in bfloat16 at opset 18\. Pass opset=22"):
        exporter.export(tmp_path / "brief")
    assert not any(tmp_path.iterdir())
    exporter = Exporter(digits, "onnx", precision="bfloat16", opset=22, verbose=False)
    assert exporter.export(tmp_path / "brief").verified


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="Keras on JAX can't trace these layers"
)
def test_a_layer_that_onnx_has_no_operators_for_is_named(tmp_path):
    pytest.importorskip("tensorflow")
    tokens = keras.Input((3,), dtype="int64")
    inner = keras.Sequential([tokens, keras.layers.Hashing(5, name="bins")])
    other = keras.Input((3,), dtype="int64")
    lookup = keras.layers.IntegerLookup(vocabulary=[7, 5], name="known")
    model = keras.Model(other, [lookup(other), inner(other)])
    with pytest.raises(
        InvalidInputError, match=r"for IntegerLookup 'known', Hashing 'bins', whose"
    ):
        Exporter(model, "onnx", verbose=False).export(tmp_path / "model")
    assert not any(tmp_path.iterdir())


def doubled_if_longer_than(length):
    class Choosing(keras.layers.Layer):
        def call(self, x):
            return 2.0 * x if x.shape[1] > length else x - 1.0

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape)

    return Choosing()


@pytest.mark.each_backend
@pytest.mark.parametrize("length", [40, 64, 300])
def test_a_choice_by_a_size_is_refused_by_all_routes(length, tmp_path):
    x = keras.Input((None, 4))
    model = keras.Model(x, doubled_if_longer_than(length)(x))
    with pytest.raises(ExportError, match="computes something else with size") as refusal:
        Exporter(model, "onnx", verbose=False).export(tmp_path / "model")
    assert not any(tmp_path.iterdir())
    if keras.backend.backend() == "torch" and importlib.util.find_spec("onnxscript"):
        assert "through the torch backend: Output 'output_0' of batch" in str(refusal.value)


OVERFLOWING = {
    "sum": lambda x: keras.ops.sum(x, axis=-1),
    "product": lambda x: keras.ops.prod(x, axis=1, keepdims=True),
    "trace": lambda x: keras.ops.trace(keras.ops.reshape(x, (-1, 2, 2)), axis1=1, axis2=2),
}


@pytest.mark.filterwarnings("ignore:NotImplemented should not be used")  # Keras 3.13, of `trace`.
@pytest.mark.parametrize("name", OVERFLOWING)
def test_integers_wrap_around_as_in_keras(name, tmp_path):
    x = keras.Input((4,), dtype="int32", name="x")
    model = keras.Model(x, OVERFLOWING[name](x))
    numbers = np.array([[2**30, 2**30, 2**30, 2**31 - 1], [70000, 70000, -(2**31), 3]], "int32")
    expected = keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(numbers)))
    assert np.any(expected != np.clip(OVERFLOWING_EXACTLY[name](numbers), -(2**31), 2**31 - 1))
    write(OnnxFormat(), model, tmp_path)
    (outputs,) = OnnxFormat().run(tmp_path, [{"x": numbers}])
    assert outputs["output_0"].dtype == expected.dtype
    np.testing.assert_array_equal(outputs["output_0"], expected)


OVERFLOWING_EXACTLY = {
    "sum": lambda x: x.astype("float64").sum(-1),
    "product": lambda x: x.astype("float64").prod(1, keepdims=True),
    "trace": lambda x: x.astype("float64")[:, [0, 3]].sum(1),
}
