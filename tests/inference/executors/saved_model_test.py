import sys

import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference.executors.saved_model import SavedModel


def test_a_bundle_is_run_with_the_signature_of_its_manifest(bundle_of, rows):
    pytest.importorskip("tensorflow")
    bundle = bundle_of("savedmodel")
    executor = SavedModel(bundle)
    assert executor.signature == bundle.manifest.signature
    assert executor.run(rows(1, 2, 3))["y"][:, 0].tolist() == [2, 4, 6]


def test_a_bundle_that_holds_no_saved_model_is_refused(bundle_of):
    pytest.importorskip("tensorflow")
    with pytest.raises(InvalidInputError, match="No SavedModel"):
        SavedModel(bundle_of("other"))


def test_the_error_names_the_extra_where_tensorflow_is_missing(bundle_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[tensorflow\]"):
        SavedModel(bundle_of("other"))
