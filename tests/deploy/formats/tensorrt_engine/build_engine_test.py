import importlib.util
import json

import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import make_error_log
from keras_deepseek.deploy.formats.tensorrt_engine.build_engine import (
    build_engine,
    check_nodes,
    resolve_profiles,
)
from keras_deepseek.errors import ExportError, InvalidInputError

SIGNATURE = Signature(inputs=(TensorSpec("input_0", (None, 4), "float32"),), outputs=())
TWO = [{"batch": (1, 1, 1)}, {"batch": (2, 8, 16)}]

TEXT = Signature(
    inputs=(
        TensorSpec("tokens", (None, None), "int32"),
        TensorSpec("features", (None, 8, None), "float32"),
    ),
    outputs=(),
)
FIXED = Signature(inputs=(TensorSpec("image", (2, 8), "float32"),), outputs=())

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


@pytest.fixture
def onnx_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"weights")
    return tmp_path / "model.onnx"


def test_an_engine_has_the_profiles_that_are_asked_for(plain_tensorrt, onnx_file):
    engine = build_engine(plain_tensorrt, onnx_file, resolve_profiles(SIGNATURE, TWO), ())
    profiles, weights = engine.split(b"\n")
    assert json.loads(profiles) == [
        {"input_0": [[1, 4], [1, 4], [1, 4]]},
        {"input_0": [[2, 4], [8, 4], [16, 4]]},
    ]
    assert weights == b"weights"


def test_unsupported_nodes_are_named_before_the_build(plain_tensorrt, onnx_file):
    unsupported = plain_tensorrt.ErrorCode.UNSUPPORTED_NODE
    plain_tensorrt.blocked = [(1, "slow", "Loop", unsupported, "false")]
    plain_tensorrt.failing = {"parse", "build"}
    with pytest.raises(ExportError, match=r"node slow \(Loop\): unsupported node"):
        build_engine(plain_tensorrt, onnx_file, resolve_profiles(SIGNATURE, None), ())


def test_errors_of_the_parser_are_named(plain_tensorrt, onnx_file):
    plain_tensorrt.failing = {"parse"}
    with pytest.raises(ExportError, match="can't take this model: the graph: invalid node: torn"):
        build_engine(plain_tensorrt, onnx_file, resolve_profiles(SIGNATURE, None), ())


def test_where_nothing_is_built_the_log_and_the_sizes_are_told(plain_tensorrt, onnx_file):
    plain_tensorrt.failing = {"build"}
    with pytest.raises(
        ExportError, match=r"no luck\. .*\(batch 1/4/32\), pass profiles="
    ) as failure:
        build_engine(plain_tensorrt, onnx_file, resolve_profiles(SIGNATURE, None), ())
    assert "warning" not in str(failure.value)


def test_capabilities_are_asked_of_rtx(plain_tensorrt, onnx_file, monkeypatch):
    capabilities = {}

    class Config(type(plain_tensorrt.Builder(plain_tensorrt.ILogger()).create_builder_config())):
        __slots__ = ("num_compute_capabilities",)

        def set_compute_capability(self, capability, index):
            assert index < self.num_compute_capabilities
            capabilities[index] = capability

    class ComputeCapability:
        SM86, SM89 = "of 86", "of 89"

    builder = type(plain_tensorrt.Builder(plain_tensorrt.ILogger()))
    monkeypatch.setattr(builder, "create_builder_config", lambda self: Config())
    plain_tensorrt.ComputeCapability = ComputeCapability
    build_engine(plain_tensorrt, onnx_file, resolve_profiles(SIGNATURE, None), ("89", "86"))
    assert capabilities == {0: "of 89", 1: "of 86"}


def test_free_axes_are_bounded_and_fixed_ones_kept():
    (profile,) = resolve_profiles(TEXT, None)
    assert profile.shapes == {
        "tokens": ((1, 1), (4, 16), (32, 64)),
        "features": ((1, 8, 1), (4, 8, 16), (32, 8, 64)),
    }
    assert str(profile) == "batch 1/4/32, tokens_axis_1 1/16/64, features_axis_2 1/16/64"


def test_an_axis_is_given_its_sizes_by_name():
    (profile,) = resolve_profiles(TEXT, {"batch": (2, 2, 2), "tokens_axis_1": [5, 6, 7]})
    assert profile.shapes == {
        "tokens": ((2, 5), (2, 6), (2, 7)),
        "features": ((2, 8, 1), (2, 8, 16), (2, 8, 64)),
    }


def test_an_input_is_given_its_whole_shapes_and_their_batch_is_everyones():
    (profile,) = resolve_profiles(
        TEXT,
        {"features": ((1, 8, 3), (2, 8, 4), (3, 8, 5)), "tokens_axis_1": (1, 2, 3)},
    )
    assert profile.shapes["tokens"] == ((1, 1), (2, 2), (3, 3))
    assert profile.sizes["features_axis_2"] == (3, 4, 5)


def test_there_may_be_several_profiles():
    first, second = resolve_profiles(TEXT, [{"batch": (1, 1, 1)}, {"batch": (2, 8, 16)}])
    assert first.sizes["batch"] == (1, 1, 1)
    assert second.sizes["batch"] == (2, 8, 16)


def test_a_batch_is_within_a_profile_or_not():
    (profile,) = resolve_profiles(TEXT, {"batch": (2, 3, 4)})
    assert profile.takes({"tokens": (2, 1), "features": (2, 8, 64)})
    assert not profile.takes({"tokens": (1, 1), "features": (1, 8, 64)})
    assert not profile.takes({"tokens": (2, 1), "features": (2, 8, 65)})


def test_an_input_may_have_the_name_of_the_batch():
    batch = Signature(inputs=(TensorSpec("batch", (None, 3), "float32"),), outputs=())
    (by_axis,) = resolve_profiles(batch, {"batch": (1, 2, 3)})
    (by_input,) = resolve_profiles(batch, {"batch": ((1, 3), (2, 3), (3, 3))})
    assert by_axis == by_input


def test_without_a_free_axis_there_is_nothing_to_choose():
    (profile,) = resolve_profiles(FIXED, None)
    assert profile.shapes == {"image": ((2, 8),) * 3}
    assert str(profile) == "fixed sizes"
    with pytest.raises(InvalidInputError, match="Known: image"):
        resolve_profiles(FIXED, {"batch": (1, 2, 3)})


@pytest.mark.parametrize("profiles", [[], "batch", 3, [("batch", (1, 2, 3))], [{}, None]])
def test_invalid_profiles_are_rejected(profiles):
    with pytest.raises(InvalidInputError, match=r"must be a dict, as in .*received"):
        resolve_profiles(TEXT, profiles)


@pytest.mark.parametrize(
    ("profile", "match"),
    [
        ({"tokens_axis1": (1, 2, 3)}, "did you mean 'tokens_axis_1'"),
        ({"batch": (4, 2, 8)}, "must be at least 1 and ascending"),
        ({"batch": (0, 2, 8)}, "must be at least 1 and ascending"),
        ({"batch": (1, 2)}, "three integers, the smallest, usual, largest"),
        ({"batch": 4}, "three integers"),
        ({"batch": (1, 2.0, 3)}, "three integers"),
        ({"batch": ((1, 2), (2, 2), (3, 2))}, "three integers"),
        ({"tokens": (1, 2, 3)}, r"three shapes.*tokens: int32 \(any, any\)"),
        ({"tokens": ((1, 2, 3), (1, 2, 3), (1, 2, 3))}, "three shapes"),
        ({"features": ((1, 9, 1), (1, 9, 1), (1, 9, 1))}, "three shapes"),
        ({"tokens": ((1, 4), (1, 2), (1, 8))}, "axis 1 of input 'tokens'.*ascending"),
        ({"tokens": ((1, 1), (2, 2), (3, 3)), "batch": (1, 2, 4)}, "'batch' has two ranges"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(profile, match):
    with pytest.raises(InvalidInputError, match=match):
        resolve_profiles(TEXT, profile)


def check(tensorrt, onnx_file):
    log = make_error_log(tensorrt)
    network = tensorrt.Builder(log).create_network(
        1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    check_nodes(tensorrt.OnnxParser(network, log), onnx_file)


def test_every_node_is_named_with_its_operator_and_the_reason(plain_tensorrt, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"any")
    check(plain_tensorrt, tmp_path / "model.onnx")
    codes = plain_tensorrt.ErrorCode
    plain_tensorrt.blocked = [
        (0, "first", "Det", codes.UNSUPPORTED_NODE, "false"),
        (2, "second", "Foo", codes.INVALID_NODE, "Plugin\n not found"),
        (3, "", "Bernoulli", codes.UNSUPPORTED_NODE, ""),
        (-1, "", "", codes.INVALID_NODE, "no such dtype"),
    ]
    with pytest.raises(ExportError) as raised:
        check(plain_tensorrt, tmp_path / "model.onnx")
    assert str(raised.value) == (
        "TensorRT can't take this model: node first (Det): unsupported node; "
        "node second (Foo): invalid node: Plugin not found; "
        "node number 3 (Bernoulli): unsupported node; "
        "the graph: invalid node: no such dtype"
    )


@needs_rtx
def test_tensorrt_rtx_names_every_node_that_it_stops_at(tmp_path):
    import tensorrt_rtx

    onnx = pytest.importorskip("onnx")
    helper, full = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="determinant"),
        helper.make_node("Relu", ["a"], ["b"], name="fine"),
        helper.make_node("Foo", ["b"], ["c"], name="own", domain="mine"),
        helper.make_node("Bernoulli", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", full, ["batch", 4, 4])],
        [helper.make_tensor_value_info("y", full, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "model.onnx")
    with pytest.raises(ExportError) as raised:
        check(tensorrt_rtx, tmp_path / "model.onnx")
    for words in ("node determinant (Det): ", "node own (Foo): ", "node number 3 (Bernoulli): "):
        assert words in str(raised.value)
    assert "fine" not in str(raised.value)
