"""One run record: what a reader sees of it while it is written, killed, resumed or damaged."""

import os
import platform
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from keras_deepseek.artifacts import RunRecord
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.studio.run_reader import RunReader, VectorSeries
from tests.oracles.run_records import InventedRun

KILLED = """
import os, sys
from keras_deepseek.artifacts import RunRecord
record = RunRecord(sys.argv[1])
for step in range(1, 501):
    record.log(step, {"loss": step})
os._exit(9)
"""


def read(path):
    reader = RunReader(path)
    reader.refresh()
    return reader


def test_points_arrive_once_while_a_training_writes(tmp_path):
    with RunRecord(tmp_path / "a.sqlite") as record:
        record.log(1, {"loss": 1.0})
        reader = read(record.path)
        assert list(reader.series("loss").values) == [1.0]
        record.log_steps([(step, {"loss": float(step)}) for step in range(2, 6)])
        record.log(5, {"val_loss": 9.0, "loss": 50.0})  # The last step again.
        old_version = reader.version
        reader.refresh()
        assert reader.version > old_version
        assert list(reader.series("loss").steps) == [1, 2, 3, 4, 5]
        assert list(reader.series("loss").values) == [1, 2, 3, 4, 50]
        assert reader.ends["loss"] | {"begin": 0, "end": 0} == {
            "step": 5,
            "last": 50.0,
            "least": 1.0,
            "most": 50.0,
            "begin": 0,
            "end": 0,
        }


def test_a_resumed_run_forgets_the_steps_that_it_repeats(tmp_path):
    with RunRecord(tmp_path / "a.sqlite") as record:
        record.log_steps([(step, {"loss": 1.0}) for step in range(1, 11)])
        record.log_vectors([(step, {"norms": np.ones(2)}) for step in range(1, 11)])
        reader = read(record.path)
        assert len(reader.series("loss").steps) == len(reader.vectors("norms").steps) == 10
        record.discard_after(4)
        reader.refresh()
        assert list(reader.series("loss").steps) == reader.vectors("norms").steps == [1, 2, 3, 4]


def test_all_steps_of_a_killed_writer_are_read(tmp_path, monkeypatch):
    path = tmp_path / "a.sqlite"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == 9
    monkeypatch.setattr(os, "access", lambda *_: False)  # As in a read-only folder.
    assert list(read(path).series("loss").values) == list(range(1, 501))
    monkeypatch.undo()
    assert list(read(path).series("loss").values) == list(range(1, 501))


@pytest.mark.parametrize("log", [None, b""])
def test_a_run_in_a_read_only_folder_is_read(tmp_path, monkeypatch, log):
    path = tmp_path / "a.sqlite"
    with RunRecord(path) as record:
        record.log(1, {"loss": 0.5})
    if log is not None:
        Path(f"{path}-wal").write_bytes(log)
    old_files = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda *_: False)  # Root may write anywhere.
    assert list(read(path).series("loss").values) == [0.5]
    with RunRecord(path, read_only=True) as record:
        assert record.scalars("loss") == [(1, 0.5)]
        assert sorted(tmp_path.iterdir()) == old_files  # No file was needed beside it.


def test_a_run_of_form_1_is_read(root):
    reader = read(root / "tests/oracles/golden/run_record_form_1.sqlite")
    assert reader.problem is None
    assert reader.state() == "ended"
    assert len(reader.series("loss").steps) > 0


def test_a_silent_run_is_lost_and_a_dead_process_at_once(tmp_path):
    now = time.time()
    run = InventedRun(tmp_path / "a.sqlite")
    run.describe(state="running", heartbeat=now, host="elsewhere", pid=1)
    reader = RunReader(run.path, lambda: now)
    reader.refresh()
    assert reader.state() == "running"
    now += 40
    assert reader.state() == "lost"
    old_version = reader.version
    reader.refresh()
    assert reader.version > old_version
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    run.describe(heartbeat=now, host=platform.node(), pid=ended.pid)
    reader.refresh()
    assert reader.state() == "lost"


def test_a_foreign_database_a_newer_form_and_a_torn_file_are_explained(tmp_path):
    with sqlite3.connect(tmp_path / "foreign.sqlite") as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()
    InventedRun(tmp_path / "newer.sqlite", form=99)
    (tmp_path / "torn.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    (tmp_path / "empty.sqlite").write_bytes(b"")
    problems = {path.stem: read(path).problem for path in tmp_path.glob("*.sqlite")}
    assert "another program's database" in problems["foreign"]
    assert "version 99" in problems["newer"]
    assert "Upgrade" in problems["newer"]
    assert problems["torn"]
    assert "empty" in problems["empty"]
    assert read(tmp_path / "torn.sqlite").state() == "unreadable"


def test_a_settled_file_is_not_read_again(tmp_path, monkeypatch):
    run = InventedRun(tmp_path / "a.sqlite")
    run.log("loss", [1], [1.0], [0.0])
    reader = RunReader(run.path, lambda: time.time() + 100)
    reader.refresh()
    monkeypatch.setattr(reader, "_read", lambda record: pytest.fail("It was read again."))
    reader.refresh()
    assert reader.version == 1


def test_vectors_keep_exact_means_within_a_bound():
    series = VectorSeries(["a", "b"])
    for step in range(10_000):
        series.add(step, np.array([step, 1.0], "f4"))
    matrix = series.matrix()
    assert matrix.shape[1] <= 2048
    weights = np.array(series.counts) / 10_000
    np.testing.assert_allclose(matrix @ weights, [4999.5, 1.0])


def test_a_command_reaches_a_run_that_runs(tmp_path):
    run = InventedRun(tmp_path / "a.sqlite")
    run.describe(state="running", heartbeat=time.time(), host="elsewhere")
    reader = read(run.path)
    with pytest.raises(InvalidInputError, match="known"):
        reader.ask("format the disk")
    reader.ask("stop")
    with RunRecord(run.path) as record:
        (command,) = record.commands(unanswered=True)
        assert command.name == "stop"
        record.answer(command.id, "stopped")
    reader.refresh()
    assert reader.summary()["commands"][0]["answer"] == "stopped"
    run.describe(state="finished")
    reader.refresh()
    with pytest.raises(InvalidInputError, match="does not run"):
        reader.ask("stop")
