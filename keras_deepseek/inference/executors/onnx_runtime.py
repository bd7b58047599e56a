"""An ONNX file, of a bundle or by itself: ONNX Runtime alone, without any framework."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.executors.found_signature import (
    FoundTensor,
    check_names,
    make_signature,
)

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""In the order of preference; those that the installed ONNX Runtime lacks are passed over."""

_DTYPES = {"float": "float32", "double": "float64", "string": "object"}
"""NumPy's names for those that ONNX Runtime calls otherwise."""

_ADVICE = (
    "Export it with tensors alone whose first axis is free: `dynamic_axes={'x': {0: 'rows'}}` of "
    "torch.onnx.export, `options={'zipmap': False}` of skl2onnx."
)


class OnnxRuntime:
    """Runs an ONNX file.

    Args:
        path: `pathlib.Path` of the file.
        signature: `Signature` of a bundle's manifest. Defaults to `None`: it is read off the file.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        InvalidInputError: ONNX Runtime can't load the file, or its names differ from the
            manifest's.
        NotSupportedError: It does not take and give any number of rows.
    """

    def __init__(self, path: Path, signature: Signature | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnxruntime", "to serve ONNX") from error

        available = onnxruntime.get_available_providers()
        providers = [name for name in _PROVIDERS if name in available]
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no class of their own.
            raise InvalidInputError(
                f"ONNX Runtime can't load {str(path)!r}: {error} Export it again."
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if signature is None:
            signature = make_signature(path, _describe(inputs), _describe(outputs), _ADVICE)
        else:
            check_names(
                path,
                [tensor.name for tensor in inputs],
                [tensor.name for tensor in outputs],
                signature,
            )
        self._signature = signature
        self._output_names = [spec.name for spec in signature.outputs]
        self._text_inputs = [spec.name for spec in signature.inputs if spec.dtype == "object"]
        self._text_outputs = [spec.name for spec in signature.outputs if spec.dtype == "object"]

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name; strings as `bytes`, which are UTF-8."""
        if self._text_inputs:
            inputs = inputs | {name: _decode(inputs[name]) for name in self._text_inputs}
        arrays = self._session.run(self._output_names, inputs)
        outputs = dict(zip(self._output_names, arrays, strict=True))
        for name in self._text_outputs:
            outputs[name] = _encode(outputs[name])
        return outputs


def _describe(tensors: Sequence[Any]) -> list[FoundTensor]:
    return [
        FoundTensor(
            tensor.name,
            # Where there is no shape at all, ONNX Runtime says the same as of a scalar's.
            [size if isinstance(size, int) else None for size in tensor.shape or ()],
            _dtype(tensor.type),
        )
        for tensor in tensors
    ]


def _dtype(kind: str) -> str:
    found = re.fullmatch(r"tensor\((\w+)\)", kind)
    # Of bfloat16 its Python takes no array.
    if found is None or found[1] == "bfloat16":
        return kind
    return _DTYPES.get(found[1], found[1])


def _decode(array: Array) -> Array:
    """Returns text: of `bytes` ONNX Runtime would take what Python prints."""
    values = [value.decode() if isinstance(value, bytes) else value for value in array.flat]
    return _objects(values, array.shape)


def _encode(array: Array) -> Array:
    return _objects([value.encode() for value in array.flat], array.shape)


def _objects(values: Sequence[Any], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)
