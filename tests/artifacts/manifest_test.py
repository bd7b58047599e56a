import json

import pytest

from keras_deepseek.artifacts.bundle import FORM, Manifest, Verification, _seal
from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import BundleError

MANIFEST = Manifest(
    name="digits",
    format="onnx",
    entry="model.onnx",
    signature=Signature(
        (TensorSpec("image", (None, 8, 8, 1), "float32"),),
        (TensorSpec("label", (None, 10), "float32"),),
    ),
    precision="float32",
    route="by hand",
    versions={"keras": "3.15.1"},
    created="2026-11-25T00:00:00+00:00",
    verification=Verification(
        "verified", num_samples=3, largest_difference=1e-7, signatures=("a", "b")
    ),
    files={"model.onnx": {"sha256": "00", "bytes": 1}},
)


def test_a_manifest_comes_back_from_its_text():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_a_manifest_of_an_older_form_is_read():
    content = json.loads(MANIFEST.to_json())
    del content["verification"]["signatures"], content["sha256"]
    content["form"] = 2
    manifest = Manifest.from_json(json.dumps({**content, "sha256": _seal(content)}))
    assert manifest.verification.signatures == ()
    assert manifest.signature == MANIFEST.signature


def test_the_text_is_the_same_each_time():
    assert MANIFEST.to_json() == MANIFEST.to_json()


def test_an_altered_value_is_refused():
    text = MANIFEST.to_json().replace('"digits"', '"other"')
    with pytest.raises(BundleError, match="altered"):
        Manifest.from_json(text)


def test_every_cut_of_the_text_is_refused():
    text = MANIFEST.to_json().rstrip()
    for end in range(len(text)):
        with pytest.raises(BundleError, match="is incomplete"):
            Manifest.from_json(text[:end])


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}"])
def test_other_json_is_refused(text):
    with pytest.raises(BundleError, match="not one of keras_deepseek"):
        Manifest.from_json(text)


def test_a_newer_form_says_to_upgrade():
    content = {**json.loads(MANIFEST.to_json()), "form": FORM + 1}
    with pytest.raises(BundleError, match="Upgrade keras_deepseek"):
        Manifest.from_json(json.dumps(content))
