import os
import subprocess
import sys
from dataclasses import replace

import pytest

from keras_deepseek.artifacts.bundle import (
    MANIFEST_NAME,
    Bundle,
    Manifest,
    Verification,
    check_target,
    is_bundle,
    publish_bundle,
    publish_file,
)
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.artifacts.staging_folder import exchange, staging_folder
from keras_deepseek.errors import BundleError, InvalidInputError

MANIFEST = Manifest(
    name="digits",
    format="savedmodel",
    entry=".",
    signature=Signature((), ()),
    precision="float32",
    route="by hand",
    versions={},
    created="2026-11-25T00:00:00+00:00",
    verification=Verification("verified"),
)


def write_bundle(path, content=b"weights", manifest=MANIFEST):
    with staging_folder(path) as folder:
        (folder / "variables").mkdir()
        (folder / "model.bin").write_bytes(content)
        (folder / "variables" / "data").write_bytes(content * 3)
        return publish_bundle(folder, path, manifest)


def test_what_was_published_opens(tmp_path):
    written = write_bundle(tmp_path / "models" / "digits")
    opened = Bundle.open(tmp_path / "models" / "digits")
    assert opened == written
    assert set(opened.manifest.files) == {"model.bin", "variables/data"}
    assert opened.entry == opened.path


def test_nothing_else_is_left_beside_it(tmp_path):
    write_bundle(tmp_path / "digits")
    write_bundle(tmp_path / "digits", b"newer")
    assert os.listdir(tmp_path) == ["digits"]
    assert (tmp_path / "digits" / "model.bin").read_bytes() == b"newer"


KILLED_AS_IT_REPLACES = """
import os, shutil, signal, sys
from pathlib import Path
from keras_deepseek.artifacts.bundle import Bundle, publish_bundle
from keras_deepseek.artifacts.staging_folder import staging_folder

def die(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def rename_and_die(path, target):
    os.rename(path, target)
    die()

target = Path(sys.argv[1])
with staging_folder(target) as work:
    folder = work / "artifact"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"newer")
    shutil.rmtree, Path.rename = die, rename_and_die
    publish_bundle(folder, target, Bundle.open(target).manifest)
"""


def test_a_process_killed_as_it_replaces_a_bundle_leaves_one(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    if not exchange(tmp_path / "here", tmp_path / "there"):
        pytest.skip("this system, or file system, exchanges no folders")
    target = tmp_path / "models" / "digits"
    write_bundle(target)
    killed = subprocess.run([sys.executable, "-c", KILLED_AS_IT_REPLACES, target], check=False)
    assert killed.returncode == -9
    assert (Bundle.open(target).path / "model.bin").read_bytes() == b"newer"
    write_bundle(target, b"newest")
    assert os.listdir(target.parent) == ["digits"]


def test_where_folders_can_not_be_exchanged_they_are_renamed(tmp_path, monkeypatch):
    write_bundle(tmp_path / "digits")
    monkeypatch.setattr(
        "keras_deepseek.artifacts.staging_folder.exchange", lambda first, second: False
    )
    write_bundle(tmp_path / "digits", b"newer")
    assert os.listdir(tmp_path) == ["digits"]
    assert (Bundle.open(tmp_path / "digits").path / "model.bin").read_bytes() == b"newer"


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    target = tmp_path / "digits.onnx"
    target.write_bytes(b"older")
    flushed = []

    def fsync(descriptor):
        flushed.append((os.fstat(descriptor).st_ino, target.read_bytes()))

    with staging_folder(target) as folder:
        file = folder / "model.onnx"
        file.write_bytes(b"newer")
        number = file.stat().st_ino
        monkeypatch.setattr(os, "fsync", fsync)
        publish_file(file, target)
    assert flushed == [(number, b"older"), (tmp_path.stat().st_ino, b"newer")]
    assert os.listdir(tmp_path) == ["digits.onnx"]


def test_a_file_that_can_not_take_its_place_says_so(tmp_path):
    (tmp_path / "digits.onnx").mkdir()
    with staging_folder(tmp_path / "digits.onnx") as folder:
        (folder / "model.onnx").touch()
        with pytest.raises(BundleError, match=r"digits\.onnx' can't be written"):
            publish_file(folder / "model.onnx", tmp_path / "digits.onnx")


def test_a_failure_in_the_middle_leaves_the_old_bundle(tmp_path):
    write_bundle(tmp_path / "digits")

    def fill_half():
        with staging_folder(tmp_path / "digits") as folder:
            (folder / "model.bin").write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_half()
    assert os.listdir(tmp_path) == ["digits"]
    assert Bundle.open(tmp_path / "digits").manifest.files["model.bin"]["bytes"] == 7


@pytest.mark.parametrize("name", ["model.bin", "variables/data", MANIFEST_NAME])
def test_a_cut_file_is_refused_by_name(tmp_path, name):
    write_bundle(tmp_path / "digits")
    path = tmp_path / "digits" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(BundleError, match=r"digits' is refused.*Export it again"):
        Bundle.open(tmp_path / "digits")


def test_a_changed_byte_is_refused(tmp_path):
    write_bundle(tmp_path / "digits")
    (tmp_path / "digits" / "model.bin").write_bytes(b"weightz")
    with pytest.raises(BundleError, match=r"'model\.bin' was altered"):
        Bundle.open(tmp_path / "digits")


def test_a_missing_file_and_an_added_one_are_named(tmp_path):
    write_bundle(tmp_path / "digits")
    (tmp_path / "digits" / "model.bin").rename(tmp_path / "digits" / "other.bin")
    with pytest.raises(BundleError, match=r"missing: \['model.bin'\].*\['other.bin'\]"):
        Bundle.open(tmp_path / "digits")
    (tmp_path / "digits" / "other.bin").rename(tmp_path / "digits" / "model.bin")
    (tmp_path / "digits" / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"not in its manifest: \['notes.txt'\]. Remove them"):
        Bundle.open(tmp_path / "digits")


def test_an_entry_outside_of_the_bundle_is_refused(tmp_path):
    write_bundle(tmp_path / "digits", manifest=replace(MANIFEST, entry="../elsewhere"))
    with pytest.raises(BundleError, match="is outside"):
        Bundle.open(tmp_path / "digits")


def test_what_is_no_bundle_says_so(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    reasons = {"none": "nothing is there", "file": "that is a file", "folder": "has no bundle.json"}
    for name, reason in reasons.items():
        with pytest.raises(BundleError, match=f"No bundle at .*{name}': .*{reason}"):
            Bundle.open(tmp_path / name)
    with pytest.raises(InvalidInputError, match="`path` must be a path, received None"):
        Bundle.open(None)


def test_a_pointer_of_git_lfs_says_so(tmp_path):
    write_bundle(tmp_path / "digits")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7\n"
    (tmp_path / "digits" / "model.bin").write_text(pointer)
    with pytest.raises(BundleError, match=r"'model\.bin' is a pointer of Git LFS.*git lfs pull"):
        Bundle.open(tmp_path / "digits")


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["thesis"]


def test_a_bundle_with_files_of_somebody_else_is_not_replaced(tmp_path):
    write_bundle(tmp_path / "digits")
    (tmp_path / "digits" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"not its own.*notes\.txt"):
        write_bundle(tmp_path / "digits")
    assert (tmp_path / "digits" / "notes.txt").read_text() == "mine"


def test_another_programs_manifest_of_the_same_name_is_no_bundle(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text('{"webpack": 1}')
    with pytest.raises(BundleError, match="not a bundle"):
        check_target(tmp_path)


def test_a_place_inside_of_a_bundle_is_refused(tmp_path):
    write_bundle(tmp_path / "digits")
    with pytest.raises(BundleError, match="is inside the bundle"):
        write_bundle(tmp_path / "digits" / "1")
    Bundle.open(tmp_path / "digits")


def test_a_damaged_bundle_is_replaced(tmp_path):
    write_bundle(tmp_path / "digits")
    (tmp_path / "digits" / "model.bin").unlink()
    write_bundle(tmp_path / "digits")
    Bundle.open(tmp_path / "digits")


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "digits").mkdir()
    check_target(tmp_path / "digits")
    write_bundle(tmp_path / "digits")
    assert is_bundle(tmp_path / "digits")
