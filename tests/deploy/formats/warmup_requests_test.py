import importlib

import numpy as np
import pytest

from keras_deepseek.deploy.formats.warmup_requests import write_warmup_requests


def fields(data):
    """Returns the fields of a message, each with its number: a reader of its own."""

    def varint(position):
        value = shift = 0
        while True:
            byte = data[position]
            value |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                return value, position

    entries, position = [], 0
    while position < len(data):
        tag, position = varint(position)
        assert tag & 7 == 2
        length, position = varint(position)
        entries.append((tag >> 3, data[position : position + length]))
        position += length
    assert position == len(data)
    return entries


def test_each_record_asks_serving_default_for_a_prediction(tmp_path):
    tf = pytest.importorskip("tensorflow")
    tensor_pb2 = importlib.import_module("tensorflow.core.framework.tensor_pb2")
    generator = np.random.default_rng(0)
    samples = [
        {"x": generator.normal(size=(rows, 40)).astype("float32"), "n": np.arange(rows)}
        for rows in (1, 3)
    ]
    write_warmup_requests(tmp_path, "digits", samples)
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert len(records) == len(samples)
    for record, sample in zip(records, samples, strict=True):
        ((log_number, log),) = fields(record)
        ((request_number, request),) = fields(log)
        assert (log_number, request_number) == (6, 1)
        (spec_number, spec), *inputs = fields(request)
        assert spec_number == 1
        assert fields(spec) == [(1, b"digits"), (3, b"serving_default")]
        received = {}
        for number, entry in inputs:
            (_, key), (_, value) = fields(entry)
            assert number == 2
            tensor = tensor_pb2.TensorProto.FromString(value)
            received[key.decode()] = tf.make_ndarray(tensor)
        assert received.keys() == sample.keys()
        for name, array in sample.items():
            np.testing.assert_array_equal(received[name], array)
