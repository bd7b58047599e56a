import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from keras_deepseek.artifacts import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
    Signature,
    TensorSpec,
)
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.executors import open_executor
from keras_deepseek.inference.executors.runtimes import OnnxRuntime


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


@pytest.fixture
def write(onnx, tmp_path):
    """Writes a file of one node, with inputs and outputs of a dtype and a shape."""
    helper = onnx.helper

    def write(inputs, outputs, operator="Identity", **attributes):
        infos = [
            [
                helper.make_tensor_value_info(name, getattr(onnx.TensorProto, dtype), shape)
                for name, (dtype, shape) in tensors.items()
            ]
            for tensors in (inputs, outputs)
        ]
        node = helper.make_node(operator, list(inputs), list(outputs), **attributes)
        opsets = [helper.make_opsetid("", 18)]
        model = helper.make_model(
            helper.make_graph([node], "graph", *infos), opset_imports=opsets, ir_version=9
        )
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return write


def test_a_bundle_is_run_with_the_signature_of_its_manifest(bundle_of, rows):
    pytest.importorskip("onnxruntime")
    bundle = bundle_of("onnx")
    executor = OnnxRuntime(bundle.entry, bundle.manifest.signature)
    assert executor.signature == bundle.manifest.signature
    assert executor.run(rows(1, 2, 3))["y"][:, 0].tolist() == [2, 4, 6]


def test_a_path_is_that_of_the_file_or_of_its_folder(write):
    path = write({"x": ("FLOAT", [None, 2])}, {"y": ("FLOAT", [None, 2])})
    for executor in (OnnxRuntime.from_path(path), OnnxRuntime.from_path(path.parent)):
        assert executor.signature.inputs == (TensorSpec("x", (None, 2), "float32"),)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the threads of a process")
def test_a_session_has_the_threads_that_are_asked_for(bundle_of):
    bundle, folder = bundle_of("onnx"), Path("/proc/self/task")
    open_executor(bundle.path)  # Some threads start with the first session.
    num_threads = len(list(folder.iterdir()))
    executor = open_executor(bundle.path, threads=6)
    assert len(list(folder.iterdir())) == num_threads + 5  # The caller computes as well.
    assert executor.run({"x": np.ones((1, 2), "float32")})["y"].tolist() == [[2.0, 2.0]]


def test_a_file_that_is_no_onnx_is_refused(bundle_of):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InvalidInputError, match=r"can't load .*model\.bin"):
        OnnxRuntime(bundle_of("other").entry)


def test_names_that_differ_from_the_manifest_are_refused(bundle_of):
    pytest.importorskip("onnxruntime")
    bundle = bundle_of("onnx")
    (spec,) = bundle.manifest.signature.inputs
    signature = replace(bundle.manifest.signature, inputs=(replace(spec, name="z"),))
    with pytest.raises(InvalidInputError, match=r"has the inputs \['x'\].*manifest says \['z'\]"):
        OnnxRuntime(bundle.entry, signature)


def test_a_bare_file_is_served_by_its_path_and_by_its_folder(write):
    shape = ["rows", 2]
    path = write({"x": ("FLOAT", shape), "z": ("FLOAT", shape)}, {"y": ("FLOAT", shape)}, "Add")
    for model in (str(path), path.parent):
        with ServingEngine(model, max_batch_size=4) as engine:
            assert engine.signature == Signature(
                (TensorSpec("x", (None, 2), "float32"), TensorSpec("z", (None, 2), "float32")),
                (TensorSpec("y", (None, 2), "float32"),),
            )
            answer = engine.predict({"z": [[1, 1], [2, 2], [3, 3]], "x": [[1, 2]] * 3})
            assert answer.tolist() == [[2, 3], [3, 4], [4, 5]]


@pytest.mark.parametrize("shape", [["n", "length"], [None, None], ["n", None]])
def test_axes_with_names_or_without_are_free(write, shape):
    path = write({"x": ("FLOAT", shape)}, {"y": ("FLOAT", shape)})
    executor = OnnxRuntime(path)
    assert executor.signature.inputs == (TensorSpec("x", (None, None), "float32"),)
    for size in (1, 3):
        assert executor.run({"x": np.ones((2, size), "float32")})["y"].shape == (2, size)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("FLOAT16", "float16"),
        ("DOUBLE", "float64"),
        ("INT64", "int64"),
        ("INT8", "int8"),
        ("UINT16", "uint16"),
        ("BOOL", "bool"),
    ],
)
def test_each_dtype_of_numbers_is_served(write, name, dtype):
    with ServingEngine(write({"x": (name, ["n"])}, {"y": (name, ["n"])})) as engine:
        answer = engine.predict([0, 1])
        assert (str(answer.dtype), answer.tolist()) == (dtype, [0, 1])


def test_strings_are_served_as_bytes(write):
    path = write({"x": ("STRING", ["n"])}, {"y": ("STRING", ["n"])})
    with ServingEngine(path) as engine:
        assert engine.signature.inputs == (TensorSpec("x", (None,), "object"),)
        for words in (["a", "é"], np.array([b"a", "é".encode()], object)):
            assert engine.predict(words).tolist() == [b"a", "é".encode()]
        with pytest.raises(UnicodeDecodeError):
            engine.predict(np.array([b"\xff"], object))
    with ServingEngine(path, isolated=True) as engine:
        assert engine.predict(["é"]).tolist() == ["é".encode()]


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (("FLOAT", [8, 2]), r"'x' .* has a first axis of 8.*dynamic_axes"),
        (("FLOAT", []), "no axis for the rows"),
        (("FLOAT", None), "no axis for the rows"),
        (("BFLOAT16", ["n", 2]), r"has the dtype tensor\(bfloat16\)"),
        (("COMPLEX64", ["n", 2]), "complex64"),
    ],
)
def test_what_can_not_be_served_is_refused_with_advice(write, tensor, match):
    with pytest.raises((NotSupportedError, InvalidInputError), match=match):
        OnnxRuntime(write({"x": tensor}, {"y": tensor}))


def test_outputs_that_are_no_tensors_or_have_no_rows_are_refused(write, onnx):
    of = {"x": ("FLOAT", ["n", 2])}
    with pytest.raises(NotSupportedError, match=r"Output 'y' .* has a first axis of 1"):
        OnnxRuntime(write(of, {"y": ("FLOAT", [1, 1])}, "ReduceSum"))
    path = write(of, {"y": ("FLOAT", ["n", 2])}, "SequenceConstruct")
    model = onnx.load(path)
    kind = onnx.helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(kind)
    onnx.save(model, path)
    with pytest.raises(
        NotSupportedError, match=r"'y' .* has the dtype seq\(tensor\(float\)\).*zipmap"
    ):
        OnnxRuntime(path)


def test_outputs_that_have_not_a_row_for_each_are_refused_before_it_is_ready(write):
    path = write({"x": ("FLOAT", ["n", 2])}, {"y": ("FLOAT", [2, "n"])}, "Transpose")
    with pytest.raises(NotSupportedError, match="first axis of 2"):
        OnnxRuntime(path)
    path = write({"x": ("FLOAT", ["n", 2])}, {"y": ("FLOAT", ["m", 1])}, "Flatten", axis=2)
    with pytest.raises(NotSupportedError, match=r"Output 'y' has shape \(2, 1\) for 1 rows"):
        ServingEngine(path).start()


def test_the_error_names_the_extra_where_the_runtime_is_missing(bundle_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[onnxruntime\]"):
        OnnxRuntime(bundle_of("other").entry)


def test_an_index_beyond_a_table_is_the_fault_of_its_request_alone(write):
    shapes = {"table": ("FLOAT", [None, 3]), "rows": ("INT64", [None])}
    path = write(shapes, {"y": ("FLOAT", [None, 3])}, "Gather", axis=0)
    table = np.arange(6, dtype="float32").reshape(2, 3)
    with ServingEngine(path, batch_size=4, max_batch_size=4, max_wait=60.0) as engine:
        good = engine.submit({"table": table, "rows": [0, 1]})
        bad = engine.submit({"table": table, "rows": [0, 7]})
        np.testing.assert_array_equal(good.result()["y"], table)
        with pytest.raises(InvalidInputError, match=r"refuses the inputs: .*out of data bounds"):
            bad.result()
