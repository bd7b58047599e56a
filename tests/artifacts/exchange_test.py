import ctypes
import os
import sys

import pytest

from keras_deepseek.artifacts.staging_folder import exchange, flush_to_disk, replace_folder


def make_two(folder):
    for name in ("first", "sécond"):
        (folder / name).mkdir()
        (folder / name / name).write_text(name)
    return folder / "first", folder / "sécond"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone exchanges paths")
def test_two_folders_change_places(tmp_path):
    first, second = make_two(tmp_path)
    if not exchange(first, second):
        pytest.skip("this file system exchanges nothing")
    assert (os.listdir(first), os.listdir(second)) == (["sécond"], ["first"])


def test_of_a_path_that_is_missing_nothing_is_changed(tmp_path):
    first, second = make_two(tmp_path)
    assert not exchange(first, tmp_path / "missing")
    assert not exchange(tmp_path / "missing", second)
    assert sorted(os.listdir(tmp_path)) == ["first", "sécond"]
    assert os.listdir(first) == ["first"]


def test_another_system_and_an_old_c_library_have_none(tmp_path, monkeypatch):
    first, second = make_two(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert not exchange(first, second)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not exchange(first, second)
    assert os.listdir(first) == ["first"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(
            "keras_deepseek.artifacts.staging_folder.exchange", lambda *paths: False
        )
    first, second = make_two(tmp_path)
    flush_to_disk(first)
    replace_folder(first, second)
    assert os.listdir(tmp_path) == ["sécond"]
    assert os.listdir(second) == ["first"]
    replace_folder(second, tmp_path / "third")
    assert os.listdir(tmp_path) == ["third"]
