"""Warmup requests, which TF Serving runs when it loads a model, before it reports ready.

They are records of the protocol buffer `PredictionLog`. Its fields are written here by their public
numbers, since the package that has the classes requires one release of TensorFlow.
"""

from collections.abc import Iterable
from pathlib import Path

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.runtimes.saved_model import import_tensorflow

_PLACE = ("assets.extra", "tf_serving_warmup_requests")
_BYTES = 2
"""The wire type of strings, bytes and messages."""
_PREDICT_LOG = 6  # In PredictionLog.
_REQUEST = 1  # In PredictLog.
_MODEL_SPEC, _INPUTS = 1, 2  # In PredictRequest.
_NAME, _SIGNATURE_NAME = 1, 3  # In ModelSpec.
_KEY, _VALUE = 1, 2  # In an entry of a map.


def write_warmup_requests(
    folder: Path, model_name: str, samples: Iterable[dict[str, Array]]
) -> None:
    """Writes a warmup request for each sample, at most 1,000, into the SavedModel's assets."""
    tf = import_tensorflow("to write warm-up requests")
    path = folder.joinpath(*_PLACE)
    path.parent.mkdir()
    spec = _field(_NAME, model_name.encode()) + _field(_SIGNATURE_NAME, b"serving_default")
    with tf.io.TFRecordWriter(str(path)) as writer:
        for sample in samples:
            request = _field(_MODEL_SPEC, spec)
            for name in sorted(sample):
                tensor = tf.make_tensor_proto(sample[name]).SerializeToString()
                entry = _field(_KEY, name.encode()) + _field(_VALUE, tensor)
                request += _field(_INPUTS, entry)
            writer.write(_field(_PREDICT_LOG, _field(_REQUEST, request)))


def _field(number: int, content: bytes) -> bytes:
    """Encodes a protocol buffer field that holds a string, bytes or a message."""
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Encodes an integer: seven bits a byte, the lowest first; a high bit means more."""
    encoded = bytearray()
    while value >> 7:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
