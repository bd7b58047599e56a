import ctypes
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.staging_folder import (
    exchange,
    flush_to_disk,
    replace_folder,
    staging_folder,
    temporary_folder,
)
from keras_deepseek.errors import BundleError

BEGUN = """
import os, signal, sys
from keras_deepseek.artifacts.staging_folder import staging_folder
with staging_folder(sys.argv[1]) as folder:
    (folder / "model.bin").write_bytes(b"half")
    print(folder, flush=True)
    {then}
"""
KILLED = BEGUN.format(then="os.kill(os.getpid(), signal.SIGKILL)")
KILLED_WITH_A_TEMPORARY_ONE = KILLED.replace(
    "import staging_folder", "import temporary_folder as staging_folder"
)
WAITING = BEGUN.format(then="sys.stdin.read()")


def test_it_is_removed_in_the_end(tmp_path):
    with staging_folder(tmp_path / "digits") as folder:
        (folder / "model.bin").write_bytes(b"half")
        assert folder.parent == tmp_path
    assert not any(tmp_path.iterdir())


def test_a_process_killed_in_mid_write_leaves_nothing_that_opens(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "digits"], check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "digits").exists()
    (leftover,) = tmp_path.iterdir()
    with pytest.raises(BundleError):
        Bundle.open(leftover)


def test_the_folder_of_a_killed_process_is_removed_by_the_next(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "digits"], check=False)
    other_folders = {
        ".digits.2.abc.partial",
        ".other.abc.partial",
        ".digits.abc.old",
        "digits.partial",
    }
    for name in other_folders:
        (tmp_path / name).mkdir()
    with staging_folder(tmp_path / "digits") as folder:
        assert set(os.listdir(tmp_path)) == {*other_folders, folder.name}
    assert set(os.listdir(tmp_path)) == other_folders


@pytest.mark.parametrize("name", ["di*ts", "[d]igits", "d?", "ä b"])
def test_a_name_is_no_pattern(tmp_path, name):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / name], check=False)
    for other in (".digits.abc.partial", ".di.abc.partial"):
        (tmp_path / other).mkdir()
    assert len(os.listdir(tmp_path)) == 3
    with staging_folder(tmp_path / name):
        pass
    assert sorted(os.listdir(tmp_path)) == [".di.abc.partial", ".digits.abc.partial"]


def test_a_temporary_folder_is_ones_own_and_what_was_left_of_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WITH_A_TEMPORARY_ONE, "job"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert killed.returncode == -9
    (leftover,) = tmp_path.glob(".job.*")
    with temporary_folder("job") as folder, temporary_folder("job") as another:
        assert set(tmp_path.iterdir()) == {folder, another}
        assert leftover not in (folder, another)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "model.keras").write_text("model")
    assert not any(tmp_path.iterdir())


def test_no_place_for_temporary_folders_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with (
        pytest.raises(BundleError, match=r"written in .*missing.*Set TMPDIR"),
        temporary_folder("job"),
    ):
        pass


def test_the_folder_of_a_running_process_stays(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, tmp_path / "digits"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writing:
        other = writing.stdout.readline().strip()
        with (
            staging_folder(tmp_path / "digits") as folder,
            staging_folder(tmp_path / "digits") as another,
        ):
            assert len({other, str(folder), str(another)}) == 3
            assert Path(other, "model.bin").exists()
            assert folder.is_dir()
        writing.stdin.close()
    assert writing.returncode == 0
    assert not any(tmp_path.iterdir())


def test_without_locks_it_is_made_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_deepseek.artifacts.staging_folder.fcntl", None)
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "digits"], check=False)
    with staging_folder(tmp_path / "digits"):
        assert len(os.listdir(tmp_path)) == 2


def test_a_failure_leaves_no_folder_that_was_made_for_it(tmp_path):
    def fail():
        with staging_folder(tmp_path / "a" / "b" / "digits"):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert not any(tmp_path.iterdir())


def test_a_place_that_can_not_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(BundleError, match=r"Nothing can be written.*file' is a file"),
        staging_folder(tmp_path / "file" / "digits"),
    ):
        pass


def test_one_may_stand_in_another(tmp_path):
    with (
        staging_folder(tmp_path / "outer") as outer,
        staging_folder(outer / "inner") as inner,
        staging_folder(inner / "innermost") as innermost,
    ):
        assert innermost.parent == inner
        assert inner.parent == outer
    assert not any(tmp_path.iterdir())


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
