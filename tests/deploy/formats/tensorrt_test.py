import importlib.util
import os
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.formats.format_list import FORMATS
from keras_deepseek.deploy.formats.tensorrt import TensorRTFormat
from keras_deepseek.errors import (
    ExportError,
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
)
from keras_deepseek.layers import ManifoldConstrainedHyperConnections

INSTALLED = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not INSTALLED, reason="tensorrt_rtx is not installed")


def build_convolutions():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="convolutions",
    )


def build_encoder():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(11, 8, mask_zero=True)(tokens)
    x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(2, 4)(x, x))
    x = x + keras.layers.Dense(8)(keras.layers.Dense(16, activation="gelu")(x))
    return keras.Model(tokens, keras.layers.Dense(3, name="scores")(x), name="encoder")


def build_lstm():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(11, 6, mask_zero=True)(tokens)
    return keras.Model(tokens, keras.layers.LSTM(5, name="state")(x), name="lstm")


def build_grouped_query_attention():
    features = keras.Input((None, 16), name="features")
    attention = keras.layers.GroupQueryAttention(4, 4, 2, name="attended")
    outputs = attention(features, features, use_causal_mask=True)
    return keras.Model(features, outputs, name="grouped_query_attention")


BUILDERS = {
    "convolutions": build_convolutions,
    "encoder": build_encoder,
    "lstm": build_lstm,
    "grouped query attention": build_grouped_query_attention,
}
WITH_TOKENS = ("encoder", "lstm")


def rows_of(name):
    generator = np.random.default_rng(0)
    if name in WITH_TOKENS:
        return generator.integers(1, 11, (40, 12))
    return generator.normal(size=(40, 8, 8, 1) if name == "convolutions" else (40, 12, 16))


@pytest.fixture(scope="module", params=["float32", "float16", "int8"])
def precision(request):
    return request.param


@pytest.fixture(scope="module", params=BUILDERS)
def onnx_of(request, precision, tmp_path_factory):
    """Returns the signature of a model and its verified ONNX file: several engines are built."""
    for package in ("tensorflow", "onnx"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, which this export goes through, is not installed")
    exporter = Exporter(
        BUILDERS[request.param](),
        "onnx",
        precision=None if precision == "float32" else precision,
        calibration=rows_of(request.param) if precision == "int8" else None,
        verbose=False,
    )
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert exporter.export(path).verified
    return exporter.signature, path


@needs_rtx
@pytest.mark.parametrize("capabilities", [(), ("80",), ("86",), ("89",), ("120",), ("86", "89")])
def test_engines_are_built_for_gpus_that_are_not_there(
    onnx_of, precision, capabilities, tmp_path, num_gpus
):
    signature, onnx_file = onnx_of
    engine = TensorRTFormat(flavor="rtx", compute_capabilities=capabilities)
    how = engine.build(onnx_file, tmp_path, signature, None)
    assert (tmp_path / "model.trt").stat().st_size > 1000
    gpus = ", ".join(f"SM{capability}" for capability in capabilities) or "Ampere and newer"
    assert f"(flavor rtx) for {gpus}, profile batch 1/4/32" in how


@needs_rtx
def test_rounds_of_a_normalization_are_a_loop_in_an_engine(
    tmp_path, num_gpus, tensorflow_installed
):
    streams = keras.Input((3, 4, 8), name="streams")
    layer = ManifoldConstrainedHyperConnections(keras.layers.Dense(8), name="mixed")
    model = keras.Model(streams, layer(streams))
    onnx_file = tmp_path / "model.onnx"
    assert Exporter(model, "onnx", rolled=True, verbose=False).export(onnx_file).verified
    onnx = pytest.importorskip("onnx")
    operators = [node.op_type for node in onnx.load(onnx_file).graph.node]
    # Of the 39 steps, one is left. Of all of them TensorRT-RTX would build for ever.
    assert operators.count("Loop") == 1
    assert operators.count("Div") <= 2
    engine = TensorRTFormat(flavor="rtx")
    assert engine.source_options == {"rolled": True}
    engine.build(onnx_file, tmp_path, NamedModel(model).signature, None)
    assert 1000 < (tmp_path / "model.trt").stat().st_size < 10_000_000


@needs_rtx
@pytest.mark.parametrize("name", BUILDERS)
def test_turing_gets_an_engine_all_of_whose_products_are_in_float16(
    name, tmp_path, num_gpus, tensorflow_installed
):
    report = Exporter(
        BUILDERS[name](),
        "tensorrt",
        flavor="rtx",
        compute_capabilities=("75",),
        precision="float16",
        verbose=False,
    ).export(tmp_path / "engine")
    assert "the onnx artifact that it was built from is verified" in report.verification.reason
    assert "for SM75," in report.route
    assert Bundle.open(tmp_path / "engine").entry.stat().st_size > 1000


@needs_rtx
def test_the_report_and_the_bundle_say_what_the_engine_is_for(
    tmp_path, num_gpus, tensorflow_installed
):
    report = Exporter(
        build_encoder(),
        "tensorrt",
        flavor="rtx",
        compute_capabilities=("86", "89"),
        profiles=[
            {"batch": (1, 1, 1)},
            {"batch": (1, 4, 32), "tokens_axis_1": (1, 16, 128)},
        ],
        precision="float16",
        opset=20,
        verbose=False,
    ).export(tmp_path / "engine")
    assert report.verification.state == "unverified"
    assert report.verification.reason.startswith("a TensorRT engine runs on a GPU, and none is")
    assert "the onnx artifact that it was built from is verified" in report.verification.reason
    assert "opset 17" in report.route
    assert report.route.endswith(
        "(flavor rtx) for SM86, SM89, profile batch 1/1/1, tokens_axis_1 1/16/64 "
        "and batch 1/4/32, tokens_axis_1 1/16/128"
    )
    manifest = Bundle.open(tmp_path / "engine").manifest
    assert (manifest.route, manifest.precision) == (report.route, "float16")
    assert set(manifest.files) == {"model.trt"}
    assert "tensorrt-rtx-cu12" in manifest.versions


@needs_rtx
def test_an_engine_may_compute_in_bfloat16(tmp_path, num_gpus, tensorflow_installed):
    report = Exporter(
        build_encoder(),
        "tensorrt",
        compute_capabilities=("120",),
        precision="bfloat16",
        verbose=False,
    ).export(tmp_path / "engine")
    assert "the onnx artifact that it was built from is verified" in report.verification.reason
    assert "for SM120," in report.route


@needs_rtx
def test_a_path_with_the_suffix_asks_for_the_file(digits, tmp_path, tensorflow_installed):
    report = Exporter(digits, "tensorrt", flavor="rtx", verbose=False).export(tmp_path / "a.trt")
    assert report.format == "tensorrt"
    assert (tmp_path / "a.trt").stat().st_size > 1000
    assert os.listdir(tmp_path) == ["a.trt"]


@needs_rtx
def test_int8_and_several_inputs_go_through_the_exporter(
    digits, tmp_path, num_gpus, tensorflow_installed
):
    images = np.random.default_rng(0).random((40, 8, 8, 1))
    report = Exporter(
        digits,
        "tensorrt",
        precision="int8",
        calibration=images,
        profiles={"image": ((1, 8, 8, 1), (8, 8, 8, 1), (64, 8, 8, 1))},
        verbose=False,
    ).export(tmp_path / "small")
    assert report.route.endswith("for Ampere and newer, profile batch 1/8/64")
    assert Bundle.open(tmp_path / "small").manifest.precision == "int8"


@needs_rtx
def test_what_blocks_is_named_and_nothing_is_left(tmp_path, num_gpus, tensorflow_installed):
    class Determinant(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.det(inputs)

    matrix = keras.Input((3, 3), name="matrix")
    model = keras.Model(matrix, Determinant()(matrix))
    with pytest.raises(ExportError, match=r"can't take this model: node \S+ \(Det\): unsupported"):
        Exporter(model, "tensorrt", verbose=False).export(tmp_path / "engine")
    assert os.listdir(tmp_path) == []


@needs_rtx
def test_what_can_not_be_parsed_is_named(tmp_path, num_gpus):
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x01broken")
    signature = Signature(inputs=(TensorSpec("x", (None, 4), "float32"),), outputs=())
    with pytest.raises(ExportError, match="TensorRT can't take this model: the graph"):
        TensorRTFormat().build(tmp_path / "broken.onnx", tmp_path, signature, None)


@needs_rtx
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compute_capabilities": ("90",)}, r"'90'; it can for 75, 80, 86, 89, 120"),
        ({"compute_capabilities": ("86", "100")}, r"'100'; it can for 75, 80, 86, 89, 120"),
        ({"compute_capabilities": ("75",)}, "precision='float16'"),
        ({"compute_capabilities": ("75", "86"), "precision": "float16"}, "received 75, 86"),
        ({"profiles": {"batch_size": (1, 2, 3)}}, "did you mean 'batch'"),
        ({"opset": 7}, "from 18 to 25"),
        ({"flavour": "rtx"}, "option of tensorrt 'flavour': did you mean 'flavor'"),
    ],
)
def test_what_can_not_be_built_is_refused_before_anything_is_exported(digits, options, match):
    with pytest.raises(InvalidInputError, match=match):
        Exporter(digits, "tensorrt", **options)


@needs_rtx
def test_an_engine_is_not_checked_without_a_gpu(digits, tmp_path, num_gpus):
    with pytest.raises(NotSupportedError, match="runs on a GPU, and none is visible"):
        Exporter(digits, "tensorrt").check(tmp_path / "engine")


@pytest.mark.skipif(INSTALLED, reason="tensorrt_rtx is installed")
def test_without_tensorrt_the_extra_is_named(digits, num_gpus):
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[tensorrt-rtx\]"):
        Exporter(model=digits, backend="tensorrt")


@pytest.fixture
def weights_for_onnx(monkeypatch, weights_format):
    """Lets an artifact of NumPy stand for the ONNX file, which the stand-in reads."""

    class Weights(weights_format):
        def __init__(self, rolled=False):  # As TensorRT asks for it.
            super().__init__()

    monkeypatch.setitem(FORMATS, "onnx", SimpleNamespace(load=lambda: Weights, suffix=".onnx"))


def test_plain_tensorrt_builds_runs_and_verifies_where_a_gpu_is(
    dense, tmp_path, plain_tensorrt, weights_for_onnx
):
    exporter = Exporter(dense, "tensorrt", profiles={"batch": (1, 2, 8)}, verbose=False)
    report = exporter.export(tmp_path / "engine")
    assert report.verified
    assert "TensorRT 10.16.0 (flavor tensorrt) for this GPU, profile batch 1/2/8" in report.route
    assert report.verification.num_samples == 3
    assert Bundle.open(tmp_path / "engine").manifest.verification == report.verification
    assert exporter.check(tmp_path / "engine").verified
    dense.layers[-1].bias.assign(np.ones(3))
    with pytest.raises(ExportError, match=r"differs by .*Export the model again"):
        exporter.check(tmp_path / "engine")


def test_a_wrong_engine_leaves_nothing(dense, tmp_path, plain_tensorrt, weights_for_onnx):
    plain_tensorrt.spoils = 0.5
    with pytest.raises(ExportError, match=r"tensorrt artifact of 'dense' does not compute"):
        Exporter(dense, "tensorrt", verbose=False).export(tmp_path / "engine")
    assert os.listdir(tmp_path) == []
    with pytest.warns(UserWarning, match="Do not serve it"):
        report = Exporter(dense, "tensorrt", verify="warn", verbose=False).export(
            tmp_path / "engine"
        )
    assert report.verification.state == "failed"


def test_plain_tensorrt_takes_no_capabilities(dense, plain_tensorrt):
    with pytest.raises(InvalidInputError, match="flavor='rtx'"):
        Exporter(dense, "tensorrt", flavor="tensorrt", compute_capabilities=("86",))


def test_what_tensorrt_would_take_for_something_else_is_refused(plain_tensorrt):
    model = keras.Sequential([keras.Input((4,), dtype="float64", name="x"), keras.layers.Dense(3)])
    with pytest.raises(InvalidInputError, match=r"no float64, which the model has in x: float64"):
        Exporter(model, "tensorrt")


def test_an_engine_is_written_by_no_backend(dense, plain_tensorrt, tmp_path):
    with pytest.raises(NotSupportedError, match="built from an ONNX file"):
        TensorRTFormat().write(NamedModel(dense), tmp_path)
