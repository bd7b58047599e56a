import math
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
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
    with RunRecord(path) as writer, RunRecord(path, read_only=True) as reader:
        writer.log(1, {"loss": 1.0})
        assert reader.scalars("loss") == [(1, 1.0)]
        with pytest.raises(InvalidInputError, match="can't be read or written: attempt to write"):
            reader.log(2, {"loss": 1.0})


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


def test_names_and_last_step_do_not_scan_the_values(tmp_path):
    with RunRecord(tmp_path / "run.sqlite") as record:
        for name in "abcdefg":
            record.log_steps([(step, {name: 1.0}) for step in range(2000)])
        instructions = []
        record._connection.set_progress_handler(lambda: instructions.append(1), 100)
        assert record.names() == list("abcdefg")
        assert record.last_step() == 1999
        assert len(instructions) < 20  # A scan of 14,000 rows would have hundreds.


def test_vectors_come_back_in_float32_and_later_ones_are_discarded(tmp_path):
    with RunRecord(tmp_path / "run.sqlite") as record:
        record.log_vectors([(1, {"norms": np.array([1.0, np.nan])}), (2, {"norms": np.ones(2)})])
        assert record.vector_names() == ["norms"]
        (first, vector), _ = record.vectors("norms")
        assert [step for step, _ in record.iterate_vectors("norms", after=1)] == [2]
        assert first == 1
        np.testing.assert_array_equal(vector, np.array([1.0, np.nan], "float32"))
        assert "generation" not in record.properties()
        record.discard_after(1)
        assert [step for step, _ in record.vectors("norms")] == [1]
        assert record.properties()["generation"] == 1


def test_points_have_a_step_for_each_value(tmp_path):
    with RunRecord(tmp_path / "run.sqlite", clock=iter(range(100)).__next__) as record:
        for step in (1, 2, 3, 5):
            record.log(step, {"loss": math.nan if step == 2 else step / 2})
        steps, values = record.points("loss")
        np.testing.assert_array_equal(steps, [1, 2, 3, 5])
        np.testing.assert_array_equal(values, [0.5, np.nan, 1.5, 2.5])
        np.testing.assert_array_equal(record.points("loss", 3), [[3, 5], [1.5, 2.5]])
        assert record.points("nothing")[0].shape == record.points("nothing")[1].shape == (0,)
        np.testing.assert_array_equal(record.times("loss", 2, 4), [[2, 3], [1, 2]])
        assert record.extent("loss") == (5, 2.5, 0.5, 2.5, 0, 3)
        assert record.extent("loss", 3) == (5, 2.5, 1.5, 2.5, 2, 3)
        assert record.extent("loss", 6) is record.extent("nothing") is None


def test_a_snapshot_does_not_see_later_writes(tmp_path):
    path = tmp_path / "run.sqlite"
    with RunRecord(path) as writer, RunRecord(path, read_only=True) as reader:
        writer.log(1, {"loss": 1.0})
        with reader.snapshot():
            assert reader.names() == ["loss"]
            writer.log(2, {"accuracy": 1.0})
            assert (reader.names(), reader.extent("loss").step) == (["loss"], 1)
        assert reader.names() == ["accuracy", "loss"]


def test_each_write_of_a_document_raises_its_version(tmp_path):
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert record.document("memory") is None
        record.write_document("memory", {"bytes": 3})
        record.write_document("memory", {"bytes": [1.5, math.inf]})
        assert record.document("memory") == {"bytes": [1.5, None]}
        assert record.documents() == {"memory": 2}


def test_a_command_waits_for_its_answer(tmp_path):
    with RunRecord(tmp_path / "run.sqlite", clock=lambda: 3.0) as record:
        command = record.ask("stop")
        assert [waiting.name for waiting in record.commands(unanswered=True)] == ["stop"]
        record.answer(command, "stops after step 7")
        assert record.commands(unanswered=True) == []
        assert record.commands() == [(command, "stop", 3.0, 3.0, "stops after step 7")]


FORM_1 = Path(__file__).parents[1] / "oracles" / "golden" / "run_record_form_1.sqlite"


def test_a_record_of_form_1_is_read_and_continued(tmp_path):
    path = tmp_path / "run.sqlite"
    shutil.copy(FORM_1, path)
    content = path.read_bytes()
    with RunRecord(path, read_only=True) as record:
        assert record.names() == ["learning_rate", "loss", "val_loss"]
        assert record.scalars("loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
        assert record.properties() == {"form": 1, "model": "digits", "epochs": 2}
        assert (record.vector_names(), record.documents(), record.commands()) == ([], {}, [])
    assert path.read_bytes() == content
    with RunRecord(path) as record:
        record.discard_after(2)
        record.write_document("memory", 1)
        assert record.last_step() == 2
        assert record.properties()["form"] == FORM


def test_a_reader_makes_no_file(tmp_path):
    with pytest.raises(InvalidInputError, match="No run record can be opened"):
        RunRecord(tmp_path / "run.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read_only", [True, False])
def test_a_torn_file_is_called_damaged(tmp_path, read_only):
    path = tmp_path / "run.sqlite"
    with RunRecord(path) as record:
        record.log_steps([(step, {"loss": 1.0}) for step in range(20000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])
    with (
        pytest.raises(InvalidInputError, match="damaged"),
        RunRecord(path, read_only=read_only) as record,
    ):
        record.scalars("loss")


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
    with RunRecord(path, read_only=True) as record:
        assert [step for step, _ in record.scalars("loss")] == list(range(1, 51))


def test_another_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, and longer than its header would be" * 9)
    content = (tmp_path / "notes.txt").read_bytes()
    with pytest.raises(InvalidInputError, match="not a run record"):
        RunRecord(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_bytes() == content


@pytest.mark.parametrize("table", ["photos (name TEXT)", "properties (photos TEXT)"])
def test_another_programs_database_is_refused_and_left_alone(tmp_path, table):
    connection = sqlite3.connect(tmp_path / "photos.db")
    connection.execute(f"CREATE TABLE {table}")
    connection.commit()
    connection.close()
    content = (tmp_path / "photos.db").read_bytes()
    with pytest.raises(InvalidInputError, match=r"another program's database"):
        RunRecord(tmp_path / "photos.db")
    assert (tmp_path / "photos.db").read_bytes() == content


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
    def fail(record, **options):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(RunRecord, "_open", fail)
    with pytest.raises(InvalidInputError, match=r"be read or written: database or disk is full"):
        RunRecord(tmp_path / "run.sqlite")


def test_a_closed_record_is_one_file_and_readers_leave_none_beside_it(tmp_path):
    path = tmp_path / "run.sqlite"
    for step in (1, 2):  # It is opened again by a training that resumes.
        with RunRecord(path) as record:
            record.log(step, {"loss": 1.0})
        with RunRecord(path, read_only=True) as record:
            assert [number for number, _ in record.scalars("loss")] == list(range(1, step + 1))
        assert [file.name for file in tmp_path.iterdir()] == ["run.sqlite"]


def test_a_record_that_another_has_open_is_closed(tmp_path):
    path = tmp_path / "run.sqlite"
    with RunRecord(path) as record:
        with RunRecord(path) as other:
            other.ask("stop")
        record.log(1, {"loss": 1.0})
        assert [command.name for command in record.commands()] == ["stop"]
