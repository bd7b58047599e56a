"""SavedModels as functions of NumPy arrays, run by TensorFlow without Keras."""

from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError, MissingExtraError, NotSupportedError

SERVING_DEFAULT = "serving_default"

FoundTensor = tuple[str, tuple[int | None, ...] | None, str]
"""A name; a shape, `None` if the rank is unknown; TensorFlow's name of a dtype."""


class SavedModelFunction:
    """A callable signature of a SavedModel, from and to dicts of arrays by name."""

    def __init__(self, loaded: Any, name: str) -> None:
        self.loaded = loaded  # The signature needs the loaded object to stay alive.
        self.name = name
        tf = import_tensorflow("to run a SavedModel")
        self._to_tensor = tf.convert_to_tensor
        self._invalid_argument = tf.errors.InvalidArgumentError
        self._serve = loaded.signatures[name]
        specs = self._serve.structured_input_signature[1]
        # TensorFlow's order differs between processes.
        self.inputs = [_describe(key, specs[key]) for key in sorted(specs)]
        outputs = self._serve.structured_outputs
        self.outputs = [_describe(key, outputs[key]) for key in sorted(outputs)]
        kinds = {key: specs[key].dtype for key in specs}
        self._strings = {key: kind for key, kind in kinds.items() if kind.name == "string"}

    def __call__(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Runs the signature; returns arrays by output name."""
        tensors = {
            name: self._to_tensor(array, dtype=self._strings.get(name))
            for name, array in inputs.items()
        }
        try:
            outputs = self._serve(**tensors)
        except self._invalid_argument as error:
            words = " ".join(error.message.split())
            raise InvalidInputError(f"The model refuses the inputs: {words}") from error
        return {name: tensor.numpy() for name, tensor in outputs.items()}


def load_saved_model(path: Path, *, takes_only_one: bool = False) -> SavedModelFunction:
    """Loads the `serving_default` signature of a SavedModel's folder.

    `takes_only_one` accepts a signature of another name if it is the only one.
    """
    tf = import_tensorflow("to run a SavedModel")
    try:
        loaded = tf.saved_model.load(str(path))
        names = list(loaded.signatures)
    except Exception as error:  # TensorFlow's errors of damaged files have no common class.
        words = " ".join(str(error).split())
        raise InvalidInputError(
            f"No SavedModel can be loaded from {str(path)!r}: {words}"
        ) from error
    if SERVING_DEFAULT in names:
        return SavedModelFunction(loaded, SERVING_DEFAULT)
    if takes_only_one and len(names) == 1:
        return SavedModelFunction(loaded, names[0])
    raise InvalidInputError(
        f"The SavedModel at {str(path)!r} has the signatures {sorted(names)}; expected one of the "
        f"name {SERVING_DEFAULT!r}. Save it with signatures={{{SERVING_DEFAULT!r}: ...}}."
    )


def limit_threads(threads: int) -> None:
    """Limits the CPU threads of TensorFlow in this process. Its first operation fixes them."""
    threading = import_tensorflow("to run a SavedModel").config.threading
    try:
        threading.set_intra_op_parallelism_threads(threads)
        threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise NotSupportedError(
            f"TensorFlow runs in this process already, with another number of threads than "
            f"{threads}. Set `threads` for the first model, or leave it out."
        ) from error


def _describe(name: str, spec: Any) -> FoundTensor:
    shape = None if spec.shape.rank is None else tuple(spec.shape)
    return name, shape, spec.dtype.name


def import_tensorflow(purpose: str) -> Any:
    """Imports TensorFlow; `purpose` is for the error message, such as "to run a SavedModel"."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingExtraError("tensorflow", "tensorflow", purpose) from error
    return tf
