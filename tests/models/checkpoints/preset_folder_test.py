import os
import signal
import subprocess
import sys
import types

import pytest

from keras_deepseek.errors import CheckpointError, InvalidInputError, MissingExtraError
from keras_deepseek.models.checkpoints.preset_folder import (
    find_preset,
    new_preset,
    read_json,
    write_json,
)


def write_old(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"version": 1}')
    (folder / "model-00001-of-00002.safetensors").touch()


def test_a_new_preset_takes_its_place_when_it_is_whole(tmp_path):
    with new_preset(tmp_path / "deep" / "preset") as folder:
        write_json(folder, "config.json", {"é": 1})
        assert not (tmp_path / "deep" / "preset").exists()
    assert os.listdir(tmp_path / "deep") == ["preset"]
    assert read_json(tmp_path / "deep" / "preset", "config.json") == {"é": 1}


def test_an_older_preset_is_replaced_as_a_whole(tmp_path):
    write_old(tmp_path / "preset")
    with new_preset(tmp_path / "preset") as folder:
        write_json(folder, "config.json", {"version": 2})
    assert os.listdir(tmp_path / "preset") == ["config.json"]
    assert os.listdir(tmp_path) == ["preset"]


def test_an_error_leaves_the_older_one(tmp_path):
    write_old(tmp_path / "preset")
    with pytest.raises(TypeError), new_preset(tmp_path / "preset") as folder:
        write_json(folder, "config.json", {"version": object()})
    assert read_json(tmp_path / "preset", "config.json") == {"version": 1}
    assert os.listdir(tmp_path) == ["preset"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(CheckpointError, match=r"preset' can't be written: No space left"),
        new_preset(tmp_path / "preset"),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("names", [["notes.md"], ["config.json", "notes.md"], ["tokenizer.json"]])
def test_what_is_no_preset_is_not_replaced(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"was not replaced: it holds (notes|tokenizer)"):
        new_preset(tmp_path).__enter__()
    assert sorted(os.listdir(tmp_path)) == names


def test_a_file_is_no_place_for_a_preset(tmp_path):
    (tmp_path / "preset").touch()
    with pytest.raises(CheckpointError, match="is a file, expected a folder"):
        new_preset(tmp_path / "preset").__enter__()
    with pytest.raises(CheckpointError, match="Nothing can be written at"):
        new_preset(tmp_path / "preset" / "inner").__enter__()
    with pytest.raises(InvalidInputError, match="`folder` must be a path"):
        new_preset(3).__enter__()


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    write_old(tmp_path / "first")
    for name, target in (("link", "first"), ("dangling", "second")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with new_preset(tmp_path / name) as folder:
            write_json(folder, "config.json", {"version": 2})
        assert (tmp_path / name).is_symlink()
        assert os.listdir(tmp_path / target) == ["config.json"]


@pytest.mark.parametrize(
    ("name", "message"), [("x" * 300, "File name too long"), ("a\0b", "`folder` must be a path")]
)
def test_a_name_that_no_system_takes_is_told(tmp_path, name, message):
    with pytest.raises((CheckpointError, InvalidInputError), match=message):
        new_preset(f"{tmp_path}/{name}").__enter__()


def test_a_folder_that_can_not_be_looked_into_is_told(tmp_path, monkeypatch):
    write_old(tmp_path / "preset")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(CheckpointError, match="can't be written: Permission denied"):
        new_preset(tmp_path / "preset").__enter__()


KILLED = """
import os, signal, sys
from keras_deepseek.models.checkpoints.preset_folder import new_preset
with new_preset(sys.argv[1]) as folder:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_amid_its_writing_leaves_the_older_one(tmp_path):
    write_old(tmp_path / "preset")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "preset")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert read_json(tmp_path / "preset", "config.json") == {"version": 1}
    assert len(os.listdir(tmp_path)) == 2
    with new_preset(tmp_path / "preset") as folder:
        write_json(folder, "config.json", {"version": 2})
    assert os.listdir(tmp_path) == ["preset"]


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff", "[" * 9000])
def test_a_file_that_is_not_a_json_object_is_told(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        CheckpointError, match=r"config\.json' (is not JSON|must hold a JSON object)"
    ):
        read_json(tmp_path, "config.json")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json' can't be read: No such file"):
        read_json(tmp_path, "config.json")


def test_a_folder_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=r"no folder 'org/name'.* write 'hf://org/name'"):
        find_preset("org/name")
    for name in ("name", "/nope", "./nope", "../nope", "~/nope", "a/b/c"):
        with pytest.raises(InvalidInputError, match=r"safetensors files\.$"):
            find_preset(name)
    with pytest.raises(InvalidInputError, match="`preset` must be a path"):
        find_preset(None)
    (tmp_path / "name").mkdir()
    assert find_preset("name").is_dir()


@pytest.mark.parametrize("name", ["hf://", "hf://name", "hf://a/b/c", "hf:///b", "hf://a/@main"])
def test_a_name_of_the_hub_has_two_parts(name):
    with pytest.raises(
        InvalidInputError, match="must have the form 'hf://organization/name@revision'"
    ):
        find_preset(name)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for `huggingface_hub`, and the calls it has had."""
    calls = []

    def download(repository, **arguments):
        calls.append((repository, arguments["revision"]))
        if repository == "org/missing":
            raise OSError("404 Client Error.\n\nRepository Not Found")
        return str(tmp_path)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return calls


def test_a_preset_comes_from_the_hub(hub, tmp_path):
    assert find_preset("hf://org/name") == tmp_path
    assert find_preset("hf://org/name@v1.0") == tmp_path
    assert hub == [("org/name", None), ("org/name", "v1.0")]


def test_what_the_hub_says_is_told_in_a_line(hub):
    with pytest.raises(
        InvalidInputError, match=r"did not return 'hf://org/missing': OSError: 404 Client Error\.$"
    ):
        find_preset("hf://org/missing")


def test_without_its_package_the_hub_asks_for_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[hub\]"):
        find_preset("hf://org/name")
