import threading

import pytest

from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.errors import CheckpointError
from keras_deepseek.training.checkpoints.checkpointed_callbacks import CheckpointWriter


class Gated(CheckpointFolder):
    """A folder that writes when it is let."""

    def __init__(self, path):
        super().__init__(path, keep_last=9)
        self.gate = threading.Event()
        self.fails = False

    def write(self, checkpoint):
        self.gate.wait()
        if self.fails:
            raise CheckpointError("No space left on device")
        super().write(checkpoint)


def test_checkpoints_are_written_in_the_background(tmp_path):
    folder = Gated(tmp_path)
    writer = CheckpointWriter(folder)
    writer.submit(Checkpoint(1, {}))
    writer.check()
    assert folder.steps() == []
    folder.gate.set()
    writer.finish()
    assert folder.steps() == [1]


def test_checkpoints_are_written_one_at_a_time(tmp_path):
    folder = Gated(tmp_path)
    folder.gate.set()
    writer = CheckpointWriter(folder)
    for step in (1, 2, 3):
        writer.submit(Checkpoint(step, {}))
        assert set(folder.steps()) >= set(range(1, step))
    writer.finish()
    assert folder.steps() == [1, 2, 3]


def test_an_error_is_raised_once_where_the_writer_is_asked(tmp_path):
    folder = Gated(tmp_path)
    folder.fails = True
    folder.gate.set()
    writer = CheckpointWriter(folder)
    for ask in (writer.finish, lambda: writer.submit(Checkpoint(2, {}))):
        writer.submit(Checkpoint(1, {}))
        with pytest.raises(CheckpointError, match="No space left"):
            ask()
        writer.check()
    assert folder.steps() == []


def test_a_check_sees_an_error_without_waiting(tmp_path):
    folder = Gated(tmp_path)
    folder.fails = True
    writer = CheckpointWriter(folder)
    writer.submit(Checkpoint(1, {}))
    writer.check()
    folder.gate.set()
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    with pytest.raises(CheckpointError):
        writer.check()
