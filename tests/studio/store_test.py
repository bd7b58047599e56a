"""The runs of a folder, as the page asks for them."""

import json
import math
import os

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.studio.store import Store
from tests.oracles.run_records import InventedRun


def test_the_page_gets_what_changed(runs):
    store = Store(runs)
    first = store.poll({})
    assert first["order"] == ["healthy", "group/killed"]
    versions = {name: run["version"] for name, run in first["runs"].items()}
    again = store.poll({"seen": versions})
    assert again == {"runs": {}, "series": {}, "vectors": {}}
    request = {"seen": versions, "series": [["healthy", "step_loss", -1, 100, 0]]}
    points = store.poll(request)["series"]["healthy\nstep_loss"]
    assert len(points["x"]) <= 100
    request["series"][0][2] = points["version"]
    assert store.poll(request)["series"] == {}


def test_a_run_that_is_deleted_leaves_the_order(tmp_path):
    for name in "ab":
        InventedRun(tmp_path / f"{name}.sqlite").log("loss", [1], [1.0], [0.0])
    store = Store(tmp_path)
    versions = {name: run["version"] for name, run in store.poll({})["runs"].items()}
    for path in tmp_path.glob("b.sqlite*"):
        path.unlink()
    assert store.poll({"seen": versions})["order"] == ["a"]


@pytest.mark.parametrize(
    ("name", "last"), [("step", 600), ("time", 66.0), ("epoch", 8.0), ("learning_rate", None)]
)
def test_x_is_the_step_the_time_the_epoch_or_a_scalar(runs, name, last):
    store = Store(runs)
    store.refresh()
    series = store.read_series({"x": name}, [["healthy", "val_loss", -1, 100, 0]])
    x = series["healthy\nval_loss"]["x"]
    assert len(x) == 8
    assert x == sorted(x)
    if last is not None:
        assert x[-1] == pytest.approx(last, rel=1e-3)


def test_a_window_and_smoothing_are_applied(runs):
    store = Store(runs)
    store.refresh()
    how = {"window": [100, 200]}
    points = store.read_series(how, [["healthy", "step_loss", -1, 500, 0.1]])["healthy\nstep_loss"]
    assert (points["x"][0], points["x"][-1]) == (99, 201)
    assert len(points["raw"]) == len(points["y"])


def test_vectors_fit_a_screen(runs):
    store = Store(runs)
    store.refresh()
    picture = store.read_vectors("healthy", "layer_gradient_norms")
    assert len(picture["rows"]) == len(picture["labels"]) == 10
    assert len(picture["steps"]) == len(picture["rows"][0]) <= 240


def test_no_other_file_can_be_named(runs, tmp_path):
    store = Store(runs)
    store.refresh()
    InventedRun(tmp_path / "secret.sqlite")
    for name in (f"../{tmp_path.name}/secret", str(tmp_path / "secret"), "", None, ["healthy"]):
        with pytest.raises(InvalidInputError, match="no run"):
            store.run(name)


def test_an_unreadable_run_leaves_the_others(tmp_path):
    InventedRun(tmp_path / "good.sqlite").log("loss", [1], [1.0], [0.0])
    (tmp_path / "bad.sqlite").write_bytes(b"not a database, but long enough to be opened as one")
    runs = Store(tmp_path).poll({})["runs"]
    assert runs["bad"]["problem"]
    assert runs["good"]["problem"] is None


def test_a_run_whose_damage_is_found_late_leaves_the_others(tmp_path):
    InventedRun(tmp_path / "whole.sqlite").log("loss", [1, 2], [1.0, 0.5], [0.0, 1.0])
    for name, table, column in (("json", "documents", "json"), ("blob", "vectors", '"values"')):
        run = InventedRun(tmp_path / f"{name}.sqlite")
        run.log("loss", [1], [1.0], [0.0])
        run.log_vectors("layer_gradient_norms", ["a"], [1], [[1.0]], [0.0])
        with run.connection() as connection:
            connection.execute(f"UPDATE {table} SET {column} = x'22'")
        os.utime(run.path, (1e9, 1e9))  # A file that was written just now is read again.
    store = Store(tmp_path)
    vectors = [[run, "layer_gradient_norms", -1] for run in ("json", "blob")]
    store.poll({"vectors": vectors})
    answer = store.poll({"series": [["whole", "loss", -1, 100, 0]]})
    assert answer["series"]["whole\nloss"]["y"] == [1.0, 0.5]
    assert {name for name, run in answer["runs"].items() if run["problem"]} == {"json", "blob"}


def test_what_only_looks_like_a_record_is_no_run(tmp_path):
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "loop.sqlite").symlink_to("loop.sqlite")
    os.mkfifo(tmp_path / "pipe.sqlite")
    assert Store(tmp_path).poll({})["runs"] == {}


def test_infinite_settings_are_json_for_a_browser(tmp_path):
    InventedRun(tmp_path / "a.sqlite").describe(arguments={"clip": math.inf, "rate": math.nan})
    answer = Store(tmp_path).poll({})
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    arguments = answer["runs"]["a"]["properties"]["arguments"]
    assert arguments == {"clip": "Infinity", "rate": "NaN"}


def test_one_record_is_a_folder_of_one(runs):
    assert Store(runs / "healthy.sqlite").poll({})["order"] == ["healthy"]
