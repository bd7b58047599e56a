import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts.protobuf_fields import (
    FIXED32,
    VARINT,
    field,
    key,
    read_fields,
    varint,
)


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, b"\x00"), (1, b"\x01"), (127, b"\x7f"), (300, b"\xac\x02")]
)
def test_a_number_is_written_as_the_documentation_of_protocol_buffers_shows(value, encoded):
    assert varint(value) == encoded


@given(number=st.integers(1, 2**20), value=st.integers(0, 2**64), content=st.binary())
def test_fields_are_read_as_they_were_written(number, value, content):
    message = key(number, VARINT) + varint(value) + field(number + 1, content)
    message += key(2, FIXED32) + b"abcd"
    assert list(read_fields(message)) == [(number, value), (number + 1, content), (2, b"abcd")]
