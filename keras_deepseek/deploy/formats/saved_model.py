"""The SavedModel export format: a folder for TensorFlow Serving and TensorFlow."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_deepseek import backend
from keras_deepseek.artifacts.export_arguments import check_classes
from keras_deepseek.artifacts.signature import Array, Batch, InferenceFunction, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.saved_model_writer import (
    CLASSIFY,
    REGRESS,
    ServingSignatures,
    classify,
    regress,
)
from keras_deepseek.backend.runtimes.saved_model import import_tensorflow, load_saved_model
from keras_deepseek.checks import check_boolean
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.samples import make_accepted_samples
from keras_deepseek.errors import NotSupportedError

_DEFAULT = "serving_default"

_PLACE = ("assets.extra", "tf_serving_warmup_requests")
_BYTES_TYPE = 2
"""The wire type of strings, bytes and messages."""
_PREDICT_LOG = 6  # In PredictionLog.
_REQUEST = 1  # In PredictLog.
_MODEL_SPEC, _INPUTS = 1, 2  # In PredictRequest.
_NAME, _SIGNATURE_NAME = 1, 3  # In ModelSpec.
_KEY, _VALUE = 1, 2  # In an entry of a map.


class SavedModelFormat(ExportFormat):
    """The SavedModel format, whose `serving_default` has the model's names and any batch size.

    Args:
        classify: Adds the signature `serving_classify`, which takes serialized `tf.train.Example`s,
            for TF Serving's Classify. A list names the classes, in the order of the model's one
            output; `True` numbers them.
        regress: Adds `serving_regress` in the same way, for an output of one value a row.
        warmup: Whether requests are written into `assets.extra/`, which TF Serving runs when it
            loads the model, so that no client waits for the first ones.
    """

    name = "savedmodel"
    suffix = ""
    entry = "."
    backends = ("tensorflow", "jax")
    packages = MappingProxyType({"jax": {"tensorflow": "tensorflow"}})
    runtime = "tensorflow"

    def __init__(
        self, classify: bool | Sequence[str] = False, regress: bool = False, warmup: bool = True
    ) -> None:
        self._classify = check_classes(classify)
        self._regress = check_boolean("regress", regress)
        self._warmup = check_boolean("warmup", warmup)
        self.signatures = (_DEFAULT, *self._further)

    def check_signature(self, signature: Signature) -> None:
        ServingSignatures(self._classes(signature), self._regress).check(signature)

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes a SavedModel: `saved_model.pb`, its variables and assets."""
        signatures = ServingSignatures(self._classes(model.signature), self._regress)
        backend.current().export.write_saved_model(model, str(folder), signatures)
        if self._warmup:
            write_warmup_requests(folder, model.model.name, make_accepted_samples(model))
        return f"SavedModel with {', '.join(self.signatures)}"

    def further_outputs(self, outputs: Batch) -> Batch:
        if not self._further:
            return {}
        (output,) = outputs.values()
        rows = output.astype("float32")
        expected = {CLASSIFY: rows, REGRESS: rows.reshape(len(rows), -1)[:, 0]}
        return {name: expected[name] for name in self._further}

    def run(self, folder: Path, samples: list[Batch]) -> list[Batch]:
        """Runs all signatures of the SavedModel with TensorFlow, without Keras."""
        infer = self.load(folder)
        loaded = infer.loaded  # type: ignore[attr-defined]
        further = self._further
        unknown = {CLASSIFY: "classify=[...] (its classes)", REGRESS: "regress=True"}
        for name, argument in unknown.items():
            if name in loaded.signatures and name not in further:
                raise NotSupportedError(f"it has {name}: pass {argument} to verify it")
        return [
            infer(sample) | {name: call(loaded, sample) for name, call in further.items()}
            for sample in samples
        ]

    def load(self, folder: Path) -> InferenceFunction:
        """Loads `serving_default` as a function from arrays by name to arrays by name."""
        return load_saved_model(folder)

    @property
    def _further(self) -> dict[str, Callable[[Any, Batch], Array]]:
        """Functions that run the classify and regress signatures on rows, by signature name."""
        classes = self._classify if isinstance(self._classify, tuple) else None
        functions: dict[str, Callable[[Any, Batch], Array]] = {}
        if self._classify is not False:
            functions[CLASSIFY] = lambda loaded, rows: classify(loaded, rows, classes)
        if self._regress:
            functions[REGRESS] = regress
        return functions

    def _classes(self, signature: Signature) -> tuple[str, ...] | None:
        """Returns the class names for Classify; `None` if `classify` is off."""
        if self._classify is False:
            return None
        if self._classify is not True:
            return self._classify
        width = signature.outputs[0].shape[-1] if signature.outputs[0].shape else None
        return tuple(str(index) for index in range(width or 0))


def write_warmup_requests(folder: Path, model_name: str, samples: Iterable[Batch]) -> None:
    """Writes a warmup request for each sample, at most 1,000, into the SavedModel's assets.

    They are records of the protocol buffer `PredictionLog`. Its fields are written by their public
    numbers, since the package that has the classes requires one release of TensorFlow.
    """
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
    return _varint(number << 3 | _BYTES_TYPE) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Encodes an integer: seven bits a byte, the lowest first; a high bit means more."""
    encoded = bytearray()
    while value >> 7:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
