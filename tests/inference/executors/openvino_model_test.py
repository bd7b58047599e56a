import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference.executors.runtimes import OpenVINOModel
from tests.inference.conftest import DOUBLE

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed"
)


@needs_openvino
def test_a_bundle_is_run_with_the_signature_of_its_manifest(bundle_of, rows):
    bundle = bundle_of("openvino")
    executor = OpenVINOModel(bundle.entry, bundle.manifest.signature)
    assert executor.signature == bundle.manifest.signature
    for count in (3, 1, 2):
        expected = np.full((count, 2), 8, "float32")
        np.testing.assert_array_equal(executor.run(rows(*[4] * count))["y"], expected)


@needs_openvino
def test_names_that_differ_from_the_manifest_are_refused(bundle_of):
    bundle = bundle_of("openvino")
    (spec,) = DOUBLE.outputs
    signature = replace(DOUBLE, outputs=(replace(spec, name="z"),))
    with pytest.raises(InvalidInputError, match=r"outputs \['y'\]; its manifest says.* \['z'\]"):
        OpenVINOModel(bundle.entry, signature)


@needs_openvino
def test_a_file_that_is_no_model_is_refused(bundle_of):
    with pytest.raises(InvalidInputError, match=r"OpenVINO can't load .*model\.bin"):
        OpenVINOModel(bundle_of("other").entry, DOUBLE)


def test_the_error_names_the_extra_where_the_runtime_is_missing(bundle_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"to serve OpenVINO.*keras_deepseek\[openvino\]"):
        OpenVINOModel(bundle_of("other").entry, DOUBLE)
