import math
import sqlite3
import subprocess
import sys

import pytest

from keras_deepseek.artifacts.run_record import FORM, RunRecord
from keras_deepseek.errors import InvalidInputError


def test_values_come_back_by_name_and_rising_step(tmp_path):
    with RunRecord(tmp_path / "runs" / "run.sqlite") as record:
        record.log(2, {"loss": 0.25, "accuracy": 0.5})
        record.log(1, {"loss": 0.5})
        assert record.names() == ["accuracy", "loss"]
        assert record.scalars("loss") == [(1, 0.5), (2, 0.25)]
        assert record.scalars("nothing") == []


def test_a_second_reader_sees_what_was_logged(tmp_path):
    path = tmp_path / "run.sqlite"
    with RunRecord(path) as writer, RunRecord(path) as reader:
        writer.log(1, {"loss": 1.0})
        assert reader.scalars("loss") == [(1, 1.0)]


def test_a_step_that_is_logged_again_is_replaced(tmp_path):
    with RunRecord(tmp_path / "run.sqlite") as record:
        record.log(1, {"loss": 1.0})
        record.log(1, {"loss": 2.0})
        assert record.scalars("loss") == [(1, 2.0)]


def test_many_steps_are_logged_at_once_and_later_ones_discarded(tmp_path):
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert record.last_step() is None
        record.log_steps([(1, {"loss": 1.0}), (2, {"loss": 0.5}), (2, {"val_loss": 0.75})])
        assert record.last_step() == 2
        record.discard_after(1)
        assert record.scalars("loss") == [(1, 1.0)]
        assert record.scalars("val_loss") == []


def test_nan_is_stored_as_missing(tmp_path):
    with RunRecord(tmp_path / "run.sqlite") as record:
        record.log(1, {"loss": math.nan})
        assert record.scalars("loss") == [(1, None)]


def test_properties_come_back_as_they_were(tmp_path):
    with RunRecord(tmp_path / "run.sqlite") as record:
        record.describe({"model": "digits", "epochs": 3})
        assert record.properties() == {"form": FORM, "model": "digits", "epochs": 3}


def test_times_are_of_the_clock_that_was_given(tmp_path):
    with RunRecord(tmp_path / "run.sqlite", clock=lambda: 12.5) as record:
        record.log(1, {"loss": 1.0})
    connection = sqlite3.connect(tmp_path / "run.sqlite")
    assert connection.execute("SELECT time FROM scalars").fetchall() == [(12.5,)]
    connection.close()


KILLED = """
import os, signal, sys
from keras_deepseek.artifacts.run_record import RunRecord
record = RunRecord(sys.argv[1])
for step in range(1, 51):
    record.log(step, {"loss": 1 / step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_loses_no_step(tmp_path):
    path = tmp_path / "run.sqlite"
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == -9
    with RunRecord(path) as record:
        assert [step for step, _ in record.scalars("loss")] == list(range(1, 51))


def test_another_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, and longer than its header would be" * 9)
    before = (tmp_path / "notes.txt").read_bytes()
    with pytest.raises(InvalidInputError, match="not a run record"):
        RunRecord(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    connection = sqlite3.connect(tmp_path / "photos.db")
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.commit()
    connection.close()
    before = (tmp_path / "photos.db").read_bytes()
    with pytest.raises(InvalidInputError, match=r"another program's database.*photos"):
        RunRecord(tmp_path / "photos.db")
    assert (tmp_path / "photos.db").read_bytes() == before


def test_a_place_where_no_file_can_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "run.sqlite"):
        with pytest.raises(InvalidInputError, match="No run record can be opened"):
            RunRecord(path)


def test_a_newer_form_says_to_upgrade(tmp_path):
    with RunRecord(tmp_path / "run.sqlite") as record:
        record.describe({"form": FORM + 1})
    with pytest.raises(InvalidInputError, match="Upgrade keras_deepseek"):
        RunRecord(tmp_path / "run.sqlite")


def test_a_record_that_cannot_be_written_is_not_called_another_file(tmp_path, monkeypatch):
    def fail(record):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(RunRecord, "_open", fail)
    with pytest.raises(InvalidInputError, match=r"can be written at .*: database or disk is full"):
        RunRecord(tmp_path / "run.sqlite")
