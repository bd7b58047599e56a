"""Checkpoints that several processes write together, each its pieces of the divided arrays."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint import Checkpoint, part_name
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.artifacts.divided_array import ArrayPieces
from keras_deepseek.errors import CheckpointError, InvalidInputError

NUM_RANKS = 3
MATRIX = np.arange(24.0).reshape(4, 6).astype(ml_dtypes.bfloat16)
FLAT = np.arange(10, dtype="float32").reshape(2, 5)
WHOLE = np.arange(3)

PROCESS = """
import os, signal, sys
from tests.artifacts.divided_checkpoint_test import Checkpoint, CheckpointFolder, make

folder, rank, phase = sys.argv[1], int(sys.argv[2]), sys.argv[3]
write_to, write = Checkpoint._write_to, Checkpoint.write


def write_half(checkpoint, file):
    write_to(checkpoint, file)
    file.truncate(file.tell() // 2)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_end(checkpoint, path):
    write(checkpoint, path)
    os.kill(os.getpid(), signal.SIGKILL)


if phase == "within":
    Checkpoint._write_to = write_half
if phase == "after":
    Checkpoint.write = write_and_end
CheckpointFolder(folder, keep_last=1).write(make(rank, step=20))
"""


def make(rank, step=10, save_id="a1", num_ranks=NUM_RANKS):
    """The file of a rank: columns of a matrix, and slices of a flat one."""
    columns = [(rank * 2, rank * 2 + 2)]
    start, stop = rank * 4, min(rank * 4 + 4, 10)
    pieces = [
        ArrayPieces((4, 6), "bfloat16", [(((0, 4), *columns), MATRIX[:, slice(*columns[0])])]),
        ArrayPieces((2, 5), "float32", [(((start, stop),), FLAT.reshape(-1)[start:stop])]),
        ArrayPieces((3,), "int64", [(((0, 3),), WHOLE)] if rank == 1 else []),
        ArrayPieces((), "float32", [((), np.array(7, "float32"))] if rank == 2 else []),
    ]
    state = {"steps": step, "values": [WHOLE, *pieces]} if rank == 0 else {"pieces": pieces}
    return Checkpoint(step, state, None, rank, num_ranks, save_id)


def write(folder, step=10, ranks=range(NUM_RANKS), save_id="a1"):
    for rank in ranks:
        folder.write(make(rank, step, save_id))


@pytest.fixture
def folder(tmp_path):
    folder = CheckpointFolder(tmp_path, keep_last=1)
    write(folder)
    return folder


def assert_whole(checkpoint, step=10):
    assert checkpoint.step == checkpoint.state["steps"] == step
    expected = [WHOLE, MATRIX, FLAT, WHOLE, np.array(7)]
    for received, array in zip(checkpoint.state["values"], expected, strict=True):
        np.testing.assert_array_equal(np.asarray(received), array)


def test_what_all_ranks_have_written_is_read(folder):
    checkpoint = folder.latest()
    assert_whole(checkpoint)
    assert_whole(pickle.loads(pickle.dumps(checkpoint)))  # As another process gets it.
    _, matrix, flat, _, scalar = checkpoint.state["values"]
    assert (matrix.shape, matrix.dtype) == ((4, 6), MATRIX.dtype)
    np.testing.assert_array_equal(matrix[1:3, 1:5], MATRIX[1:3, 1:5])
    np.testing.assert_array_equal(matrix[:2], MATRIX[:2])
    np.testing.assert_array_equal(matrix.flat(5, 20), MATRIX.reshape(-1)[5:20])
    np.testing.assert_array_equal(flat.flat(3, 9), FLAT.reshape(-1)[3:9])
    np.testing.assert_array_equal(flat[:, 1:3], FLAT[:, 1:3])
    assert flat[:0].shape == (0, 5)
    assert scalar[()] == 7
    assert matrix[3:1].shape == (0, 6)


@pytest.mark.parametrize(
    "index", [slice(None, None, 2), (slice(None), slice(3, 0, -1)), 1], ids=str
)
def test_an_index_that_is_no_plain_slice_is_refused(folder, index):
    _, matrix, flat, _, _ = folder.latest().state["values"]
    for array in (matrix, flat):
        with pytest.raises(
            InvalidInputError, match=r"slices without a step; received .*\. Read the"
        ):
            array[index]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]], ids=str)
def test_a_checkpoint_is_there_once_the_last_rank_has_written(folder, order):
    for rank in order:
        assert folder.steps() == [10]
        folder.write(make(rank, 20))
    assert folder.steps() == [20]
    assert len(list(folder.path.iterdir())) == NUM_RANKS
    assert_whole(folder.latest(), 20)


@pytest.mark.parametrize("phase", ["within", "after"])
@pytest.mark.parametrize("victim", range(NUM_RANKS))
def test_of_processes_that_are_killed_in_a_write_the_last_whole_checkpoint_stays(
    folder, victim, phase
):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, folder.path, str(rank), phase * (rank == victim)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for rank in range(NUM_RANKS)
    ]
    codes = [process.wait(60) for process in processes]
    assert codes == [-signal.SIGKILL * (rank == victim) for rank in range(NUM_RANKS)]
    steps = folder.steps()
    assert steps in ([10], [20])  # One that was killed after its write may have been the first.
    assert_whole(folder.latest(), steps[0])
    folder.discard_after(steps[0])
    write(folder, 20, save_id="b1")  # By those that go on.
    assert_whole(folder.latest(), 20)
    write(folder, 30, save_id="b2")
    assert len(list(folder.path.iterdir())) == NUM_RANKS


def test_a_part_that_is_missing_is_an_error_and_no_reason_to_go_back(tmp_path):
    folder = CheckpointFolder(tmp_path)
    write(folder, 10)
    write(folder, 20)
    (tmp_path / part_name(20, "a1", 2)).unlink()
    message = r"rank_2', the file of rank 2 of 3 of 'step_0000000020.*missing\. Copy it back, or"
    with pytest.raises(InvalidInputError, match=message):
        folder.latest()


@pytest.mark.parametrize(
    "foreign",
    [
        {"rank": 1, "step": 10},
        {"rank": 2},
        {"rank": 1, "save_id": "b7"},
        {"rank": 1, "num_ranks": 4},
    ],
    ids=["step", "rank", "save", "number"],
)
def test_a_part_of_another_checkpoint_is_refused(tmp_path, foreign):
    folder = CheckpointFolder(tmp_path)
    write(folder, 20)
    path = tmp_path / part_name(20, "a1", 1)
    make(**{"step": 20, **foreign}).write(path)
    with pytest.raises(InvalidInputError, match=r"should be the file of rank 1 of 3.*is that of"):
        folder.latest()


def test_a_part_that_is_cut_off_is_damaged(folder):
    folder.keep_last = 2
    write(folder, 20)
    path = folder.path / part_name(20, "a1", 1)
    path.write_bytes(path.read_bytes()[:-20])
    assert_whole(folder.latest())  # The one before it.


def test_a_byte_that_is_altered_is_noticed_where_it_is_read(folder):
    path = folder.path / part_name(10, "a1", 1)
    content = bytearray(path.read_bytes())
    content[content.index(FLAT.reshape(-1)[4:8].tobytes())] ^= 1
    path.write_bytes(content)
    _, matrix, flat, *_ = folder.latest().state["values"]
    np.testing.assert_array_equal(np.asarray(matrix), MATRIX)
    np.testing.assert_array_equal(flat.flat(0, 4), FLAT.reshape(-1)[:4])
    with pytest.raises(CheckpointError, match=r"rank_1' is damaged.*Remove the checkpoint to use"):
        flat.flat(0, 5)


def test_numbers_that_no_rank_has_are_missed(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for rank in range(2):
        folder.write(make(rank, num_ranks=2))
    with pytest.raises(CheckpointError, match=r"has 16 of the 24 numbers"):
        np.asarray(folder.latest().state["values"][1])
