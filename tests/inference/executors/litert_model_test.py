import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference.executors.runtimes import LiteRTModel
from tests.inference.conftest import DOUBLE


def test_a_bundle_is_run_with_the_signature_of_its_manifest(bundle_of, rows):
    bundle = bundle_of("litert")
    executor = LiteRTModel(bundle.entry, bundle.manifest.signature, threads=2)
    assert executor.signature == bundle.manifest.signature
    for count in (3, 1, 2):
        expected = np.full((count, 2), 8, "float32")
        np.testing.assert_array_equal(executor.run(rows(*[4] * count))["y"], expected)


def test_names_that_differ_from_the_manifest_are_refused(bundle_of):
    (spec,) = DOUBLE.outputs
    signature = replace(DOUBLE, outputs=(replace(spec, name="z"),))
    with pytest.raises(InvalidInputError, match=r"outputs \['y'\]; its manifest says.* \['z'\]"):
        LiteRTModel(bundle_of("litert").entry, signature)


def test_a_file_that_is_no_model_is_refused(bundle_of):
    pytest.importorskip("tensorflow")
    with pytest.raises(InvalidInputError, match=r"LiteRT can't load .*model\.bin"):
        LiteRTModel(bundle_of("other").entry, DOUBLE)


def test_replicas_may_share_a_model(bundle_of, rows):
    executor = LiteRTModel(bundle_of("litert").entry, DOUBLE)
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda size: executor.run(rows(*[size] * size)), [1, 4, 2] * 9))
    assert [len(output["y"]) for output in outputs] == [1, 4, 2] * 9
    assert all((output["y"] == 2 * len(output["y"])).all() for output in outputs)


def test_the_error_names_the_extra_where_the_runtime_is_missing(bundle_of, monkeypatch):
    for module in ("ai_edge_litert", "ai_edge_litert.interpreter", "tensorflow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"to serve LiteRT.*keras_deepseek\[litert\]"):
        LiteRTModel(bundle_of("other").entry, DOUBLE)
