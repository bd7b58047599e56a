"""SavedModel: a folder that TF Serving loads, run by TensorFlow."""

from pathlib import Path

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.backend.saved_model import load_saved_model


class SavedModelFormat:
    """Writes a SavedModel whose `serving_default` has the model's names and a free batch axis."""

    name = "savedmodel"
    suffix = ""
    entry = "."
    backends = ("tensorflow", "jax")
    runtime = "tensorflow"

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes `saved_model.pb` and what belongs to it."""
        backend.current().write_saved_model(model, str(folder))
        return "SavedModel with signature serving_default"

    def run(self, folder: Path, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Runs the signature by TensorFlow, without Keras."""
        infer = load_saved_model(folder)
        return [infer(sample) for sample in samples]
