import logging
import math

import pytest

from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.errors import CheckpointError, InvalidInputError


def write(folder, *steps, score=None):
    for step in steps:
        folder.write(Checkpoint(step, {"step": step}, score))


def tear(folder, step):
    path = folder.path / f"step_{step:010d}.checkpoint"
    path.write_bytes(path.read_bytes()[:100])


def test_a_folder_that_is_not_there_yet_has_none(tmp_path):
    folder = CheckpointFolder(tmp_path / "not" / "yet")
    assert folder.steps() == []
    assert folder.latest() is None
    write(folder, 3)
    assert folder.latest().state == {"step": 3}


def test_the_newest_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_last=3)
    write(folder, 10, 9_999_999_999, 20, 30, 40)
    assert folder.steps() == [30, 40, 9_999_999_999]


@pytest.mark.parametrize(("best_is", "steps"), [("min", [2, 4, 6]), ("max", [1, 3, 6])])
def test_the_best_are_kept_beside_them(tmp_path, best_is, steps):
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_best=2, best_is=best_is)
    for step, score in enumerate([0.9, 0.1, 0.8, 0.2, 0.5, None], start=1):
        write(folder, step, score=score)
    assert folder.steps() == steps
    again = CheckpointFolder(tmp_path, keep_last=1, keep_best=2, best_is=best_is)
    write(again, 7, score=0.5)
    assert again.steps() == [*steps[:2], 7]


def test_what_would_be_among_the_best_is_known(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_best=1)
    assert folder.is_among_best(5.0)
    assert not folder.is_among_best(math.nan)
    write(folder, 1, score=0.5)
    assert folder.is_among_best(0.4)
    assert not folder.is_among_best(0.5)
    assert not folder.is_among_best(math.nan)
    assert not CheckpointFolder(tmp_path).is_among_best(0.1)


def test_a_score_that_is_no_number_is_none_of_the_best(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_best=1)
    write(folder, 1, score=math.nan)
    write(folder, 2)
    assert folder.steps() == [2]


def test_a_torn_file_is_passed_over(tmp_path, caplog):
    folder = CheckpointFolder(tmp_path)
    write(folder, 1, 2)
    tear(folder, 2)
    with caplog.at_level(logging.WARNING):
        assert folder.latest().step == 1
    assert "is damaged" in caplog.text
    assert caplog.text.count("one before it is tried") == 1
    tear(folder, 1)
    with pytest.raises(CheckpointError, match="None of the checkpoints"):
        folder.latest()
    assert caplog.text.count("one before it is tried") == 2


def test_a_torn_file_does_not_keep_the_folder_of_the_best_from_opening(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_best=1)
    write(folder, 1, score=0.5)
    write(folder, 2, score=0.1)
    tear(folder, 2)
    assert not CheckpointFolder(tmp_path, keep_best=1).is_among_best(0.6)
    assert CheckpointFolder(tmp_path, keep_best=1).is_among_best(0.4)


def test_torn_files_alone_are_an_error_and_not_a_new_beginning(tmp_path):
    folder = CheckpointFolder(tmp_path)
    write(folder, 1, 2)
    tear(folder, 1)
    tear(folder, 2)
    with pytest.raises(CheckpointError, match=r"None of the checkpoints .* steps \[1, 2\]"):
        folder.latest()


def test_later_ones_are_discarded(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_last=9, keep_best=1)
    write(folder, 1, 2, 3, score=0.1)
    folder.discard_after(1)
    assert folder.steps() == [1]
    assert folder.is_among_best(0.05)


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    folder = CheckpointFolder(tmp_path)
    (tmp_path / "step_0000000004.checkpoint.partial").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    assert folder.latest() is None
    write(folder, 5)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "step_0000000005.checkpoint"]


def test_a_file_in_the_folder_s_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(InvalidInputError, match="is a file"):
        CheckpointFolder(tmp_path / "file")


def test_a_folder_that_can_not_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("here")
    folder = CheckpointFolder(tmp_path / "file" / "inside")
    with pytest.raises(CheckpointError, match="No folder for checkpoints can be made"):
        write(folder, 1)
    with pytest.raises(CheckpointError, match="No folder for checkpoints can be made"):
        folder.check_writable()


def test_a_folder_that_can_not_be_written_to_is_said_before_there_is_a_checkpoint(
    tmp_path, monkeypatch
):
    def refuse(**arguments):
        raise PermissionError("not yours")

    folder = CheckpointFolder(tmp_path / "new")
    folder.check_writable()
    assert not list(folder.path.iterdir())
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(CheckpointError, match=r"can't be written to: not yours"):
        folder.check_writable()


@pytest.mark.parametrize(("best_is", "step"), [("min", 2), ("max", 1)])
def test_the_best_is_read_by_an_object_that_keeps_none(tmp_path, best_is, step):
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_best=1, best_is=best_is)
    for number, score in enumerate([0.9, 0.1, 0.8, math.nan, None], start=1):
        write(folder, number, score=score)
    assert CheckpointFolder(tmp_path).best().step == step
    folder.discard_after(0)
    with pytest.raises(InvalidInputError, match="was kept as the best"):
        folder.best()
