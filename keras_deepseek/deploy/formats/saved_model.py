"""SavedModel: a folder that TF Serving loads, run by TensorFlow."""

from collections.abc import Sequence
from pathlib import Path

from keras_deepseek import backend
from keras_deepseek.artifacts.argument_check import check_boolean
from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.artifacts.signature import Array, InferenceFunction, Signature
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.backend.saved_model import load_saved_model
from keras_deepseek.backend.serving_signatures import ServingSignatures
from keras_deepseek.deploy.formats.warmup_requests import write_warmup_requests
from keras_deepseek.deploy.samples import make_taken_samples


class SavedModelFormat:
    """Writes a SavedModel whose `serving_default` has the model's names and a free batch axis.

    Args:
        classify: boolean or list of strings. Whether there is a `serving_classify` of serialized
            `tf.train.Example`s, for TF Serving's Classify, or the names of its classes, in the
            order of the model's one output; `True` for their numbers. Defaults to `False`.
        regress: boolean. Whether there is a `serving_regress`, likewise, of an output of one value
            a row. Defaults to `False`.
        warmup: boolean. Whether TF Serving finds requests in `assets.extra/` that it makes when it
            loads the model, so that no client waits for the first ones. Defaults to `True`.

    Raises:
        InvalidInputError: An argument is none of these.
    """

    name = "savedmodel"
    suffix = ""
    entry = "."
    backends = ("tensorflow", "jax")
    runtime = "tensorflow"

    def __init__(
        self, classify: bool | Sequence[str] = False, regress: bool = False, warmup: bool = True
    ) -> None:
        names = [] if isinstance(classify, bool) else classify
        is_list = isinstance(names, list | tuple) and all(isinstance(each, str) for each in names)
        if not is_list or (not isinstance(classify, bool) and not names):
            raise InvalidInputError(
                "`classify` must be a boolean, or a list of the classes' names; "
                f"received {classify!r}."
            )
        if len(set(names)) < len(names):
            raise InvalidInputError(
                f"`classify` names a class twice: {[*names]}. By its name a client tells it."
            )
        self._classify = classify
        self._regress = check_boolean("regress", regress)
        self._warmup = check_boolean("warmup", warmup)

    def check_signature(self, signature: Signature) -> None:
        """Raises where a model's inputs and outputs are none to classify or regress by."""
        ServingSignatures(self._classes(signature), self._regress).check(signature)

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes `saved_model.pb` and what belongs to it."""
        signatures = ServingSignatures(self._classes(model.signature), self._regress)
        backend.current().write_saved_model(model, str(folder), signatures)
        if self._warmup:
            write_warmup_requests(folder, model.model.name, make_taken_samples(model))
        names = ["serving_default"]
        names += ["serving_classify"] if signatures.classes is not None else []
        names += ["serving_regress"] if signatures.regresses else []
        return f"SavedModel with {', '.join(names)}"

    def run(self, folder: Path, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Runs the signature by TensorFlow, without Keras."""
        infer = self.load(folder)
        return [infer(sample) for sample in samples]

    def load(self, folder: Path) -> InferenceFunction:
        """Returns the signature as a function of arrays by name."""
        return load_saved_model(folder)

    def _classes(self, signature: Signature) -> tuple[str, ...] | None:
        """Returns the names of the classes; `None` where nothing is to be classified."""
        if self._classify is False:
            return None
        if self._classify is not True:
            return tuple(self._classify)
        width = signature.outputs[0].shape[-1] if signature.outputs[0].shape else None
        return tuple(str(index) for index in range(width or 0))
