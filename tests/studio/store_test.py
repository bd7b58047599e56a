"""The runs of a folder, as the page asks for them."""

import json
import math
import os

import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.studio.store import Store, reduce_to_pixels, smooth
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


def test_smoothing_is_a_centred_mean_over_all_known_points():
    values = np.random.default_rng(0).normal(size=50)
    values[7] = np.nan
    expected = [
        np.nan if np.isnan(values[i]) else np.nanmean(values[max(i - 5, 0) : i + 6])
        for i in range(50)
    ]
    np.testing.assert_allclose(smooth(values, 0.2), expected)


def test_a_pixel_has_the_least_the_largest_and_the_mean_of_its_points():
    x, y = np.arange(1000), np.random.default_rng(0).normal(size=1000)
    points = reduce_to_pixels(x, y, 10)
    assert len(points["x"]) == 10
    for start, least, mean, most in zip(
        range(0, 1000, 100), points["least"], points["y"], points["most"], strict=True
    ):
        part = y[start : start + 100]
        assert least == pytest.approx(part.min(), rel=1e-5)
        assert most == pytest.approx(part.max(), rel=1e-5)
        assert mean == pytest.approx(part.mean(), rel=1e-4, abs=1e-6)


def test_no_extreme_point_is_lost():
    y = np.zeros(100_000)
    y[[12_345, 77_777]] = 5, -5
    points = reduce_to_pixels(np.arange(100_000), y, 300)
    assert (max(points["most"]), min(points["least"])) == (5, -5)


def test_few_points_are_all_there_and_missing_ones_are_null():
    points = reduce_to_pixels(np.arange(4), np.array([1.0, np.nan, np.inf, 123456.789]), 100)
    assert points == {"x": [0, 1, 2, 3], "y": [1.0, None, None, 123456.789]}


def test_smoothed_points_come_with_the_raw_ones():
    points = reduce_to_pixels(np.arange(20), np.arange(20.0) ** 2, 100, share=0.2)
    assert points["raw"] == [float(n) for n in np.arange(20) ** 2]
    assert points["y"] != points["raw"]


def test_a_window_keeps_a_point_beyond_each_end():
    points = reduce_to_pixels(np.arange(100), np.arange(100.0), 100, window=(10, 20))
    assert points["x"] == list(range(9, 22))


def test_an_axis_that_goes_back_is_sorted():
    assert reduce_to_pixels(np.array([3, 1, 2]), np.array([30.0, 10, 20]), 9)["y"] == [10, 20, 30]
