import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts.table_file import TableFile
from keras_deepseek.errors import InvalidInputError

ENDINGS = [".jsonl", ".csv"]


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_an_object_a_line(tmp_path):
    with TableFile(tmp_path / "runs" / "log.jsonl") as table:
        table.append([{"step": 1, "loss": 0.5}, {"step": 2, "kind": "größte"}])
        table.append([{"step": 3, "loss": math.nan, "other": -math.inf}])
    assert table.read() == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "kind": "größte"},
        {"step": 3, "loss": None, "other": None},
    ]


def test_a_column_that_comes_later_is_there_from_the_start(tmp_path):
    with TableFile(tmp_path / "log.csv") as table:
        table.append([{"step": 1, "a, b": 0.5}])
        table.append([{"step": 2, "val": math.nan}])
        table.append([{"val": 3.0, "step": 3}])
    assert lines(tmp_path / "log.csv") == ['step,"a, b",val', "1,0.5,", "2,,nan", "3,,3.0"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_opened_again_goes_on(tmp_path, ending):
    path = tmp_path / f"log{ending}"
    for step in (1, 2):
        with TableFile(path) as table:
            table.append([{"step": step, "loss": 0.5}])
    assert [int(row["step"]) for row in table.read()] == [1, 2]
    assert len(lines(path)) == 2 + (ending == ".csv")


@pytest.mark.parametrize("ending", ENDINGS)
@given(cut=st.integers(1, 200))
def test_a_last_line_that_was_cut_short_is_dropped(tmp_path_factory, ending, cut):
    path = tmp_path_factory.mktemp("run") / f"log{ending}"
    with TableFile(path) as table:
        table.append([{"step": step, "kind": "step", "loss": 1 / 3} for step in range(20)])
    before = path.read_bytes()
    path.write_bytes(before[:-cut])
    whole = before[:-cut].rfind(b"\n") + 1
    with TableFile(path) as table:
        assert path.read_bytes() == before[:whole]
        table.append([{"step": 20, "kind": "step", "loss": 0.25}])
    steps = [int(row["step"]) for row in table.read()]
    assert steps == [*range(len(steps) - 1), 20]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_dropped(tmp_path, ending):
    with TableFile(tmp_path / f"log{ending}") as table:
        table.append([{"step": step} for step in range(5)])
        table.keep(lambda row: int(row["step"]) < 3)
        table.append([{"step": 9}])
        assert [int(row["step"]) for row in table.read()] == [0, 1, 2, 9]
        table.keep(lambda row: False)
        assert table.read() == []
    assert [path.name for path in tmp_path.iterdir()] == [f"log{ending}"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.jsonl", "notes\n"),
        ("log.jsonl", "[1]\n"),
        ("log.jsonl", "notes"),
        ("log.csv", "a,b\n1\n"),
        ("log.csv", "notes"),
    ],
)
def test_something_else_is_refused_and_left_alone(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match="does not hold rows of"):
        TableFile(tmp_path / name)
    assert (tmp_path / name).read_text() == text


def test_another_ending_and_a_place_where_no_file_can_be(tmp_path):
    with pytest.raises(InvalidInputError, match=r"\.jsonl or \.csv"):
        TableFile(tmp_path / "log.txt")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="can't be written"):
        TableFile(tmp_path / "file" / "log.csv")
