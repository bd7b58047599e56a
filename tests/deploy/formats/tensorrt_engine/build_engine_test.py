import json

import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy.formats.tensorrt_engine.build_engine import build_engine
from keras_deepseek.deploy.formats.tensorrt_engine.profiles import resolve_profiles
from keras_deepseek.errors import ExportError

SIGNATURE = Signature(inputs=(TensorSpec("input_0", (None, 4), "float32"),), outputs=())
TWO = [{"batch": (1, 1, 1)}, {"batch": (2, 8, 16)}]


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


def test_what_blocks_is_named_before_anything_is_built(plain_tensorrt, onnx_file):
    unsupported = plain_tensorrt.ErrorCode.UNSUPPORTED_NODE
    plain_tensorrt.blocked = [(1, "slow", "Loop", unsupported, "false")]
    plain_tensorrt.failing = {"parse", "build"}
    with pytest.raises(ExportError, match=r"node slow \(Loop\): unsupported node"):
        build_engine(plain_tensorrt, onnx_file, resolve_profiles(SIGNATURE, None), ())


def test_what_only_parsing_finds_is_named(plain_tensorrt, onnx_file):
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
