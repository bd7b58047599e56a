"""Traffic to play: shapes and CSV files."""

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator.traffic import DAY, TRAFFIC, flash, read_traffic


@pytest.mark.parametrize("name", TRAFFIC)
def test_day_stays_near_the_peak_and_repeats(name):
    day = TRAFFIC[name](1000, 1)
    assert len(day) == DAY
    assert 800 < max(day) < 1300
    assert min(day) > 0
    assert day == TRAFFIC[name](1000, 1) != TRAFFIC[name](1000, 2)


def test_flash_doubles_within_two_minutes():
    day = flash(1000, 0)
    assert max(later / now for now, later in zip(day, day[120:], strict=False)) > 1.9


def test_reads_csv(tmp_path):
    file = tmp_path / "day.csv"
    file.write_text("time,requests\n0,10\n1,20.5\n")
    assert read_traffic(str(file)) == [10.0, 20.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n1\n-2\n", "line 3: '-2'"), ("1\nx\n", "line 2: 'x'"), ("", "has no numbers")],
)
def test_refuses_bad_csv(tmp_path, text, message):
    file = tmp_path / "day.csv"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_traffic(str(file))


def test_missing_file(tmp_path):
    with pytest.raises(InvalidInputError, match="Can't read"):
        read_traffic(str(tmp_path / "none.csv"))
