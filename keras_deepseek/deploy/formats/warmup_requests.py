"""Warmup requests, which TF Serving runs when it loads a model, before it reports ready.

They are records of the protocol buffer `PredictionLog`. Its fields are written here by their public
numbers, since the package that has the classes requires one release of TensorFlow.
"""

from collections.abc import Iterable
from pathlib import Path

from keras_deepseek.artifacts.protobuf_fields import field
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.runtimes.saved_model import import_tensorflow

_PLACE = ("assets.extra", "tf_serving_warmup_requests")
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
    spec = field(_NAME, model_name.encode()) + field(_SIGNATURE_NAME, b"serving_default")
    with tf.io.TFRecordWriter(str(path)) as writer:
        for sample in samples:
            request = field(_MODEL_SPEC, spec)
            for name in sorted(sample):
                tensor = tf.make_tensor_proto(sample[name]).SerializeToString()
                entry = field(_KEY, name.encode()) + field(_VALUE, tensor)
                request += field(_INPUTS, entry)
            writer.write(field(_PREDICT_LOG, field(_REQUEST, request)))
