"""The interface between the engine and the runtime that computes a model, and its checks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.inference.protocols.tensor_bytes import DTYPES

_SERVED = {dtype.name for dtype in DTYPES}


class Executor(ABC):
    """Base class of objects that compute a model: one row of outputs for each row of inputs.

    Subclass it to serve a model that is not a Keras model. Only `signature` and `run` are required,
    and `ServingEngine` also takes any other object that has these two. The engine calls `run` with
    every batch size that it uses. With `replicas=1`, the default, it calls `run` from one thread at
    a time; with more replicas, from that many threads at the same time.

    To serve bundles of your own export format, override `from_bundle` as well, and name the class
    in your package under the entry point group `keras_deepseek.executors`, by the format's name.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.artifacts import Signature, TensorSpec
    >>> class Double(Executor):
    ...     signature = Signature(
    ...         inputs=(TensorSpec("x", (None, 2), "float32"),),
    ...         outputs=(TensorSpec("y", (None, 2), "float32"),),
    ...     )
    ...     def run(self, inputs):
    ...         return {"y": 2 * inputs["x"]}
    >>> Double().run({"x": np.ones((1, 2), "float32")})
    {'y': array([[2., 2.]], dtype=float32)}
    """

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "Executor":
        """Opens a bundle. The default refuses: override it to serve a format by its name.

        Args:
            bundle: `Bundle`. Its files are checked already.
            custom_objects_from: sequence of module names or `.py` files that define custom classes.
                Defaults to `()`.
            threads: integer. The number of CPU threads that compute a batch. Defaults to `None`: as
                many as the runtime chooses.

        Returns:
            An `Executor`.

        Raises:
            NotSupportedError: The class does not open bundles.
        """
        raise NotSupportedError(
            f"{cls.__name__} can't open the bundle at {str(bundle.path)!r}: it does not override "
            "`Executor.from_bundle`."
        )

    @classmethod
    def from_path(
        cls,
        path: Path,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "Executor":
        """Opens a model that has no manifest. The default refuses.

        Args:
            path: `pathlib.Path`. A file or a folder.
            custom_objects_from: sequence of module names or `.py` files that define custom classes.
                Defaults to `()`.
            threads: integer. The number of CPU threads that compute a batch. Defaults to `None`: as
                many as the runtime chooses.

        Returns:
            An `Executor`.

        Raises:
            NotSupportedError: The class does not open models without a manifest.
        """
        raise NotSupportedError(
            f"{cls.__name__} can't open {str(path)!r}: it does not override `Executor.from_path`."
        )

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""

    @abstractmethod
    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Computes a batch.

        Args:
            inputs: dict of arrays by input name, as the signature has them.

        Returns:
            A dict of arrays by output name.

        Raises:
            InvalidInputError: The model refuses these values, which the signature allows. The
                engine then runs the batch's requests one by one, and those that fail alone are
                answered with 400 or INVALID_ARGUMENT and this message. Any other error is a fault
                of the model.
        """

    @property
    def is_isolated(self) -> bool:
        """True if the model runs in its own process. Then `close` may end it during a batch."""
        return False

    def prepare_to_close(self) -> None:  # noqa: B027 - it is optional to override.
        """Announces that `close` follows when the accepted requests are answered.

        Any thread may call it, also during a batch. The default does nothing.
        """

    def close(self) -> None:  # noqa: B027 - it is optional to override.
        """Releases what the executor holds: a process, or memory of a GPU.

        The engine calls it only for executors that it opened itself. The default does nothing.
        """


def check_outputs(outputs: object, signature: Signature) -> None:
    """Raises a `NotSupportedError` unless a model gave arrays by the names of its signature."""
    expected = [spec.name for spec in signature.outputs]
    if not isinstance(outputs, Mapping) or set(outputs) != set(expected):
        received = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise NotSupportedError(
            f"The model gave the outputs {received}; its signature says {expected}. Expected a "
            "dict of arrays by these names from `run`."
        )
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray):
            raise NotSupportedError(
                f"The model gave a {type(array).__name__} as output {name!r}. Expected a NumPy "
                "array from `run`."
            )


@runtime_checkable
class _RunsModel(Protocol):
    """The interface of objects with the two required members of an `Executor`."""

    @property
    def signature(self) -> Signature: ...

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]: ...


class _WrappedObject(Executor):
    def __init__(self, model: _RunsModel) -> None:
        self._model = model

    @property
    def signature(self) -> Signature:
        return self._model.signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self._model.run(inputs)


def as_executor(model: Any) -> Executor | None:
    """Returns an executor for any object that has `signature` and `run`, and `None` for others."""
    if isinstance(model, type):
        return None
    if isinstance(model, Executor):
        return model
    return _WrappedObject(model) if isinstance(model, _RunsModel) else None


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
