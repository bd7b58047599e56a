import os

import pytest

from keras_deepseek.inference.executors.open_executor import kind_of_model, stamp_of


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("bundle.json", "bundle"),
        ("saved_model.pb", "savedmodel"),
        ("saved_model.pbtxt", "savedmodel"),
        ("model.onnx", "onnx"),
        ("config.json", "preset"),
        ("model.keras", None),
        ("other.onnx", None),
    ],
)
def test_a_folder_is_known_by_what_is_in_it(tmp_path, file, kind):
    assert kind_of_model(tmp_path) is None
    (tmp_path / file).write_bytes(b"")
    assert kind_of_model(tmp_path) == kind


def test_a_manifest_makes_a_bundle_of_whatever_is_beside_it(tmp_path):
    for name in ("saved_model.pb", "model.onnx", "bundle.json"):
        (tmp_path / name).write_bytes(b"")
    assert kind_of_model(tmp_path) == "bundle"


def test_a_config_of_transformers_beside_an_exported_model_makes_no_preset_of_it(tmp_path):
    for name in ("config.json", "model.onnx"):
        (tmp_path / name).write_bytes(b"")
    assert kind_of_model(tmp_path) == "onnx"


@pytest.mark.parametrize(
    ("name", "kind"), [("a.keras", "keras"), ("a.onnx", "onnx"), ("a.h5", None), ("a.pb", None)]
)
def test_a_file_is_known_by_its_name(tmp_path, name, kind):
    assert kind_of_model(tmp_path / name) is None
    (tmp_path / name).write_bytes(b"")
    assert kind_of_model(tmp_path / name) == kind


@pytest.mark.parametrize("has_manifest", [True, False])
def test_any_file_of_a_model_changes_its_stamp(tmp_path, has_manifest):
    (tmp_path / "variables").mkdir()
    if has_manifest:
        (tmp_path / "bundle.json").write_text("{}")
    stamps = [stamp_of(tmp_path)]
    for name, content in (("saved_model.pb", b"a"), ("variables/data", b"b"), ("extra", b"")):
        (tmp_path / name).write_bytes(content)
        stamps.append(stamp_of(tmp_path))
    (tmp_path / "variables/data").write_bytes(b"bc")
    stamps.append(stamp_of(tmp_path))
    os.utime(tmp_path / "extra", (1, 1))
    stamps.append(stamp_of(tmp_path))
    assert len(set(stamps)) == len(stamps)
    assert stamp_of(tmp_path) == stamps[-1]


def test_a_file_that_may_be_read_now_changes_the_stamp(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"a")
    stamp = stamp_of(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert stamp_of(tmp_path) != stamp


def test_what_has_gone_has_another_stamp(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.onnx").write_bytes(b"a")
    stamp = stamp_of(tmp_path / "model")
    assert stamp_of(tmp_path / "nowhere") != stamp
