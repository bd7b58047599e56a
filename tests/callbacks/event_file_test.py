import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.callbacks.event_file import EventFile, Scalar, find_event_files
from keras_deepseek.errors import InvalidInputError
from tests.oracles.event_reader import read_scalars

SCALARS = [
    Scalar("batch_loss", 300, 0.5, 1700000001.0),
    Scalar("epoch_loss", 0, 0.0, 1700000002.0),
    Scalar("epoch_größe", 2**40, -1.5, 1700000003.0),
]


def write(folder, scalars, **options):
    file = EventFile(folder, **options)
    file.write(scalars)
    file.close()
    return find_event_files(folder)[-1]


@given(
    st.lists(
        st.builds(
            Scalar,
            tag=st.text(st.characters(codec="utf-8"), min_size=1),
            step=st.integers(0, 2**62),
            value=st.floats(width=32, allow_nan=False),
            time=st.floats(0, 2e9),
        )
    )
)
def test_any_scalars_are_read_as_they_were_written(tmp_path_factory, scalars):
    folder = tmp_path_factory.mktemp("run")
    write(folder, scalars)
    expected = {}
    for scalar in scalars:
        expected.setdefault(scalar.tag, []).append((scalar.step, scalar.value))
    assert read_scalars(folder) == expected


def test_written_scalars_are_on_disk_before_the_file_is_closed(tmp_path):
    file = EventFile(tmp_path)
    file.write(SCALARS)
    assert sorted(read_scalars(tmp_path)) == sorted(scalar.tag for scalar in SCALARS)
    file.close()


def test_numbers_beyond_float32_are_infinite(tmp_path):
    write(tmp_path, [Scalar("a", 1, value, 0.0) for value in (1e300, -1e300, math.nan)])
    values = [value for _, value in read_scalars(tmp_path)["a"]]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])


def test_kept_events_move_to_the_new_file_alone(tmp_path):
    write(tmp_path, SCALARS)
    write(tmp_path, [Scalar("batch_loss", 301, 0.25, 0.0)])
    write(tmp_path, [Scalar("batch_loss", 301, 0.75, 0.0)], keep=lambda tag, step: step <= 300)
    assert [path.stat().st_size > 0 for path in find_event_files(tmp_path)] == [0, 0, 1]
    assert read_scalars(tmp_path) == {
        "batch_loss": [(300, 0.5), (301, 0.75)],
        "epoch_loss": [(0, 0.0)],
    }


def test_events_that_a_killed_process_left_in_two_files_are_kept_once(tmp_path):
    write(tmp_path, SCALARS)
    write(tmp_path, SCALARS)
    write(tmp_path, [], keep=lambda tag, step: True)
    assert read_scalars(tmp_path)["batch_loss"] == [(300, 0.5)]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_record_that_was_cut_short_is_left_out(tmp_path, cut):
    path = write(tmp_path, SCALARS)
    path.write_bytes(path.read_bytes()[:-cut])
    write(tmp_path, [], keep=lambda tag, step: True)
    assert sorted(read_scalars(tmp_path)) == ["batch_loss", "epoch_loss"]


def test_files_of_the_same_second_sort_by_time(tmp_path):
    names = [write(tmp_path, []).name for _ in range(11)]
    assert names == sorted(names)
    assert len(set(names)) == 11


def test_a_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="No event file can be made"):
        EventFile(tmp_path / "file" / "run")


def test_a_running_tensorboard_forgets_dropped_events(tmp_path):
    multiplexer = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_multiplexer"
    )

    def read():
        board.Reload()
        return {
            tag: [event.step for event in board.Tensors("run", tag)]
            for tag in board.GetAccumulator("run").Tags()["tensors"]
        }

    board = multiplexer.EventMultiplexer()
    write(tmp_path / "run", SCALARS)
    board.AddRunsFromDirectory(str(tmp_path))
    assert read() == {"batch_loss": [300], "epoch_loss": [0], "epoch_größe": [2**40]}
    for step in (301, 302):
        write(
            tmp_path / "run",
            [Scalar("batch_loss", step, 0.25, 0.0)],
            keep=lambda tag, step: step <= 300,
        )
        assert read() == {"batch_loss": [300, step], "epoch_loss": [0], "epoch_größe": []}
