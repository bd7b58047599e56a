import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.training.launch.output import LinePrefixer


@pytest.fixture
def written():
    return []


def test_a_line_is_written_when_it_is_whole(written):
    lines = LinePrefixer(b"[1] ", written.append)
    lines.feed(b"half")
    assert written == []
    lines.feed(b" a line\nand")
    assert written == [b"[1] half a line\n"]
    lines.close()
    assert written[1:] == [b"[1] and\n"]
    lines.close()
    assert len(written) == 2


def test_lines_that_come_together_are_written_in_one_piece(written):
    LinePrefixer(b"[1] ", written.append).feed(b"a\n\nb\n")
    assert written == [b"[1] a\n[1] \n[1] b\n"]


def test_a_line_without_an_end_is_cut(written):
    lines = LinePrefixer(b"> ", written.append)
    for _ in range(40):
        lines.feed(b"x" * 10_000)
    assert len(written) == 6
    assert all(len(piece) == 65536 + 3 for piece in written)
    lines.close()
    assert sum(piece.count(b"x") for piece in written) == 400_000


def test_the_last_lines_are_kept_short_and_readable(written):
    lines = LinePrefixer(b"> ", written.append)
    lines.feed(b"".join(b"%d\n" % number for number in range(100)))
    lines.feed(b"\xe9\n" + b"y" * 5000)
    lines.close()
    assert lines.last_lines[:2] == ["82", "83"]
    assert lines.last_lines[-2:] == ["\N{REPLACEMENT CHARACTER}", "y" * 1000]
    assert len(lines.last_lines) == 20


@given(st.lists(st.binary()))
def test_nothing_is_lost_however_it_is_cut(chunks):
    written = []
    lines = LinePrefixer(b"", written.append)
    for chunk in chunks:
        lines.feed(chunk)
    lines.close()
    whole = b"".join(chunks)
    expected = whole if not whole or whole.endswith(b"\n") else whole + b"\n"
    assert b"".join(written) == expected
