import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts.event_file import (
    EventFile,
    Scalar,
    find_event_files,
    masked_crc32c,
    read_events,
)
from keras_deepseek.errors import InvalidInputError
from tests.oracles.event_reader import read_scalars

# What TensorBoard 2.21 writes by its own messages and its own `RecordWriter`: the version, three
# scalars, and the start of a session.
GOLDEN = bytes.fromhex(
    "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe921000000"
    "00000000017becf60900004040fc54d94110ac022a130a110a0a62617463685f6c6f7373150000003f5f72ec"
    "5f1e00000000000000d9dc12320900008040fc54d9412a130a110a0a65706f63685f6c6f73731500000000a5"
    "1a4cfa2800000000000000ff70164a090000c040fc54d941108080808080202a160a140a0d65706f63685f67"
    "72c3b6c39f65150000c0bf78fa30750d000000000000003c37b8340900001040fc54d9413a0208018c8e54cd"
)
SCALARS = [
    Scalar("batch_loss", 300, 0.5, 1700000001.0),
    Scalar("epoch_loss", 0, 0.0, 1700000002.0),
    Scalar("epoch_größe", 2**40, -1.5, 1700000003.0),
]


def clock():
    return 1700000000.25


def write(folder, scalars, **options):
    with EventFile(folder, clock=clock, **options) as events:
        events.write(scalars)
    return events.path


HEAD, SESSION = 16 + 0x18, 16 + 0x0D  # The lengths of the version's record, and of the session's.


def test_the_bytes_are_those_that_tensorboard_writes(tmp_path):
    version, scalars, session = GOLDEN[:HEAD], GOLDEN[HEAD:-SESSION], GOLDEN[-SESSION:]
    path = write(tmp_path, SCALARS)
    assert path.read_bytes() == version + session + scalars
    # A second one starts no session: TensorBoard would forget the first.
    assert write(tmp_path, SCALARS).read_bytes() == version + scalars
    path = write(tmp_path, [], keep=lambda tag, step: True)
    assert path.read_bytes() == version + session + 2 * scalars


def test_the_checksum_is_that_of_the_published_vectors():
    """Of RFC 3720, appendix B.4, masked."""

    def unmasked(data):
        rotated = (masked_crc32c(data) - 0xA282EAD8) & 0xFFFFFFFF
        return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF

    assert unmasked(bytes(32)) == 0x8A9136AA
    assert unmasked(b"\xff" * 32) == 0x62A8AB43
    assert unmasked(bytes(range(32))) == 0x46DD794E


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
    path = write(folder, scalars)
    expected = {}
    for scalar in scalars:
        expected.setdefault(scalar.tag, []).append((scalar.step, scalar.value))
    assert read_scalars(folder) == expected
    assert [(tag, step) for tag, step, _ in read_events(path)][2:] == [
        (scalar.tag, scalar.step) for scalar in scalars
    ]


def test_numbers_that_32_bits_do_not_hold(tmp_path):
    write(tmp_path, [Scalar("a", 1, value, 0.0) for value in (1e300, -1e300, math.nan)])
    values = [value for _, value in read_scalars(tmp_path)["a"]]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])


def test_what_a_later_file_takes_over_is_in_it_alone(tmp_path):
    write(tmp_path, SCALARS)
    write(tmp_path, [Scalar("batch_loss", 301, 0.25, 0.0)])
    write(tmp_path, [Scalar("batch_loss", 301, 0.75, 0.0)], keep=lambda tag, step: step <= 300)
    assert sorted(path.stat().st_size > 0 for path in find_event_files(tmp_path)) == [0, 0, 1]
    assert read_scalars(tmp_path) == {
        "batch_loss": [(300, 0.5), (301, 0.75)],
        "epoch_loss": [(0, 0.0)],
    }


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_record_that_was_cut_short_is_left_out(tmp_path, cut):
    path = write(tmp_path, SCALARS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [tag for tag, *_ in read_events(path)] == ["", "", "batch_loss", "epoch_loss"]
    write(tmp_path, [], keep=lambda tag, step: True)
    assert sorted(read_scalars(tmp_path)) == ["batch_loss", "epoch_loss"]


def test_files_begun_in_the_same_second_have_names_that_sort(tmp_path):
    names = [write(tmp_path, []).name for _ in range(11)]
    assert names == sorted(names)
    assert [path.name for path in find_event_files(tmp_path)] == names


def test_a_place_where_no_folder_can_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="No event file can be made"):
        EventFile(tmp_path / "file" / "run")


def test_a_tensorboard_that_looks_on_forgets_what_was_dropped(tmp_path):
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
