"""A bundle that holds a SavedModel: TensorFlow alone, without Keras."""

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.saved_model import load_saved_model


class SavedModel:
    """Runs the `serving_default` signature of a bundle's SavedModel.

    Args:
        bundle: `Bundle` of the format `"savedmodel"`.

    Raises:
        MissingExtraError: TensorFlow is not installed.
        InvalidInputError: TensorFlow can't load it.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._signature = bundle.manifest.signature
        self._infer = load_saved_model(bundle.entry)

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name."""
        outputs = self._infer(inputs)  # In an order of TensorFlow's.
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}
