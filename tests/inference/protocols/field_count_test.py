import asyncio

import pytest

pytest.importorskip("google.protobuf")

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import grpc_messages
from keras_deepseek.inference.protocols.grpc_messages import new_message

INFER, PREDICT = "inference.ModelInferRequest", "tensorflow.serving.PredictRequest"
CLASSIFY = "tensorflow.serving.ClassificationRequest"


def infer(**contents):
    message = new_message(INFER)
    tensor = message.inputs.add()
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return message.SerializeToString()


def examples(count):
    message = new_message(CLASSIFY)
    for _ in range(count):
        message.input.example_list.examples.add()
    return message.SerializeToString()


def check(name, data):
    asyncio.run(grpc_messages.check_field_count(name, data))


OVERLONG = b"\xaa\x80\x80\x00\x80\x80\x00"
"""Field 5, empty, with a tag and a size of more bytes than they need."""

GROUP = b"\x2b\x2a\x02\xff\xff\x2c"
"""A group of number 5, with a field of number 5 that is no message."""


@pytest.mark.parametrize(
    ("name", "make", "most"),
    [
        (CLASSIFY, examples, 98),
        (INFER, lambda count: infer(bytes_contents=[b"a"] * count), 98),
        (INFER, lambda count: infer(int64_contents=[1] * count), 97 * 32 + 31),
        (INFER, lambda count: b"\x2a\x00" * count, 100),
        (INFER, lambda count: b"\x3a\x00" * count, 100),
        (INFER, lambda count: OVERLONG * count, 100),
        (INFER, lambda count: GROUP * 9 + b"\x2a\x00" * count, 100 - 9 * 4),
        (INFER, lambda count: b"\x7a\x00" * count, 100),  # An unknown field.
        (INFER, lambda count: b"\x2a\x02" * count + b"\x2a\x00", 99),  # Each in the one before.
        (PREDICT, lambda count: b"\x12\x00" * count, 100),
        (PREDICT, lambda count: b"\x0d1234" * count, 100),
        (PREDICT, lambda count: b"\x0912345678" * count, 100),
    ],
)
def test_more_fields_than_the_most_are_refused(monkeypatch, name, make, most):
    monkeypatch.setattr(grpc_messages, "MAX_FIELDS", 100)
    for count in (most // 2, most):
        check(name, make(count))
    with pytest.raises(InvalidInputError, match="more than 100 fields"):
        check(name, make(most + 1) + bytes(100))


def test_raw_bytes_and_floats_of_any_size_are_few_fields():
    message = new_message(INFER, raw_input_contents=[bytes(2**23)])
    check(INFER, message.SerializeToString())
    check(INFER, infer(fp32_contents=[0.0] * 2**20))


def test_malformed_bytes_are_left_to_the_parser():
    check(PREDICT, b"\x12\xff\xff\xff\x7f" + b"\xff" * 2**20)
    check(PREDICT, b"\xff" * 2**20)
