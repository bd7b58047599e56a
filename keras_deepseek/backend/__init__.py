"""The only code that names TensorFlow, JAX or PyTorch, and that touches private names of Keras.

`current()` is the way in: a module with the same functions whichever framework Keras runs on.
Beside the three stand `keras_internals` (private names of Keras, each with a canary test),
`named_model` (a model by the names of its inputs and outputs) and `saved_model` (running a
SavedModel without Keras).
"""

import importlib
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    import keras

    from keras_deepseek.artifacts.signature import Array
    from keras_deepseek.backend.named_model import NamedModel

    InferenceFunction = Callable[[dict[str, Array]], dict[str, Array]]


class Backend(Protocol):
    """What each of `backend.tensorflow`, `backend.jax` and `backend.torch` offers."""

    def count_devices(self, kind: str) -> int:
        """Returns how many devices of a kind (`"cpu"`, `"gpu"`, `"tpu"`) there are."""

    def compile_inference(self, model: "NamedModel") -> "InferenceFunction":
        """Returns the model as a compiled function of NumPy arrays, from and to dicts by name."""

    def compute_gradients(
        self,
        function: "Callable[..., Any]",
        inputs: "Sequence[Array]",
        variables: "Sequence[keras.Variable]",
    ) -> "tuple[list[Array], list[Array]]":
        """Returns the gradients of the scalar `function(*inputs)`, by input and by variable."""

    def write_saved_model(self, model: "NamedModel", path: str) -> None:
        """Writes the model as a SavedModel into a folder, or raises `NotSupportedError`."""

    def write_onnx(self, model: "NamedModel", path: str, opset: int) -> None:
        """Writes the model as an ONNX file, or raises `NotSupportedError`."""


def current() -> Backend:
    """Returns the backend module for the framework that Keras runs on."""
    import keras

    return cast(Backend, importlib.import_module(f"{__name__}.{keras.backend.backend()}"))
