"""The signature of a model without a manifest, made from what its runtime reports."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.inference.protocols.dtypes import DTYPES

_SERVED = {dtype.name for dtype in DTYPES}


@dataclass(frozen=True)
class RuntimeTensor:
    """An input or output, as a runtime describes it.

    `shape` has `None` for free sizes, and is `None` if the rank is unknown. `dtype` is NumPy's
    name, `"object"` for strings, or the runtime's name for a type that NumPy lacks.
    """

    name: str
    shape: Sequence[int | None] | None
    dtype: str


def make_signature(
    path: Path, inputs: Sequence[RuntimeTensor], outputs: Sequence[RuntimeTensor], advice: str
) -> Signature:
    """Returns the signature of a model whose tensors all have a free batch axis first.

    `advice` tells in errors how to make such a model. Raises `NotSupportedError` for a fixed first
    axis, an unknown rank, or a dtype that no client can send.
    """
    if not inputs or not outputs:
        raise NotSupportedError(
            f"The model at {str(path)!r} has {len(inputs)} inputs and {len(outputs)} outputs. "
            "A served model has at least one of each."
        )
    return Signature(
        inputs=tuple(_check(path, "Input", tensor, advice) for tensor in inputs),
        outputs=tuple(_check(path, "Output", tensor, advice) for tensor in outputs),
    )


def check_names(
    path: Path, inputs: Iterable[str], outputs: Iterable[str], signature: Signature
) -> None:
    """Raises an error if a model's input or output names differ from its manifest's.

    It may have more outputs than the manifest.
    """
    received = set(inputs), set(outputs)
    expected = tuple({spec.name for spec in of} for of in (signature.inputs, signature.outputs))
    if received[0] != expected[0] or not expected[1] <= received[1]:
        raise InvalidInputError(
            f"{str(path)!r} has the inputs {sorted(received[0])} and the outputs "
            f"{sorted(received[1])}; its manifest says {sorted(expected[0])} and "
            f"{sorted(expected[1])}. Export it again."
        )


def _check(path: Path, kind: str, tensor: RuntimeTensor, advice: str) -> TensorSpec:
    problem = ""
    if tensor.dtype not in _SERVED:
        problem = f"has the dtype {tensor.dtype}, which clients can't send"
    elif tensor.shape is None:
        problem = "has an unknown rank, so its batch axis can't be found"
    elif not tensor.shape:
        problem = "has no axis for the rows of a batch"
    elif tensor.shape[0] is not None:
        problem = f"has a first axis of {tensor.shape[0]}; expected a free batch axis"
    if problem or tensor.shape is None:
        raise NotSupportedError(
            f"{kind} {tensor.name!r} of the model at {str(path)!r} {problem}. {advice}"
        )
    return TensorSpec(tensor.name, tuple(tensor.shape), tensor.dtype)
