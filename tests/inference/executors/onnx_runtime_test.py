import sys
from dataclasses import replace

import pytest

from keras_deepseek.artifacts import Bundle, InvalidInputError, MissingExtraError
from keras_deepseek.inference.executors.onnx_runtime import OnnxRuntime


def test_a_bundle_is_run_with_the_signature_of_its_manifest(bundle_of, rows):
    pytest.importorskip("onnxruntime")
    bundle = bundle_of("onnx")
    executor = OnnxRuntime(bundle)
    assert executor.signature == bundle.manifest.signature
    assert executor.run(rows(1, 2, 3))["y"][:, 0].tolist() == [2, 4, 6]


def test_a_file_that_is_no_onnx_is_refused(bundle_of):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InvalidInputError, match=r"can't load .*model\.bin"):
        OnnxRuntime(bundle_of("other"))


def test_names_that_differ_from_the_manifest_are_refused(bundle_of):
    pytest.importorskip("onnxruntime")
    bundle = bundle_of("onnx")
    (spec,) = bundle.manifest.signature.inputs
    signature = replace(bundle.manifest.signature, inputs=(replace(spec, name="z"),))
    changed = Bundle(bundle.path, replace(bundle.manifest, signature=signature))
    with pytest.raises(InvalidInputError, match=r"has the inputs \['x'\].*manifest says \['z'\]"):
        OnnxRuntime(changed)


def test_the_error_names_the_extra_where_the_runtime_is_missing(bundle_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[onnxruntime\]"):
        OnnxRuntime(bundle_of("other"))
