"""A SavedModel, of a bundle or as TF Serving's users have it: TensorFlow alone, without Keras."""

from pathlib import Path

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.runtimes.saved_model import load_saved_model
from keras_deepseek.inference.executors.found_signature import FoundTensor, make_signature

_ADVICE = (
    "Save it with a signature of tensors of numbers, booleans or strings whose first axis is free, "
    "as in tf.TensorSpec([None, 28, 28], tf.float32)."
)


class SavedModel:
    """Runs the `serving_default` signature of a SavedModel, or the only one.

    Args:
        path: `pathlib.Path` of the folder that holds `saved_model.pb`.
        signature: `Signature` of a bundle's manifest. Defaults to `None`: it is read off the
            SavedModel.

    Raises:
        MissingExtraError: TensorFlow is not installed.
        InvalidInputError: TensorFlow can't load it.
        NotSupportedError: It does not take and give any number of rows.
    """

    def __init__(self, path: Path, signature: Signature | None = None) -> None:
        self._infer = load_saved_model(path, takes_only_one=signature is None)
        if signature is None:
            inputs, outputs = (
                [FoundTensor(name, shape, _dtype(dtype)) for name, shape, dtype in tensors]
                for tensors in (self._infer.inputs, self._infer.outputs)
            )
            signature = make_signature(path, inputs, outputs, _ADVICE)
        self._signature = signature

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name."""
        outputs = self._infer(inputs)  # In an order of TensorFlow's.
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}


def _dtype(name: str) -> str:
    return "object" if name == "string" else name
