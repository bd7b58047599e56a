"""SavedModels, in a bundle or without one. They need TensorFlow alone, not Keras."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.runtimes.saved_model import limit_threads, load_saved_model
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.executors.runtime_signature import RuntimeTensor, make_signature

_ADVICE = (
    "Save it with a signature of tensors of numbers, booleans or strings whose first axis is free, "
    "as in tf.TensorSpec([None, 28, 28], tf.float32)."
)


class SavedModel(Executor):
    """Runs the `serving_default` signature of a SavedModel's folder, or the only one.

    Without a signature of a manifest, it is read off the SavedModel.
    """

    def __init__(
        self, path: Path, signature: Signature | None = None, threads: int | None = None
    ) -> None:
        if threads is not None:
            limit_threads(threads)
        self._infer = load_saved_model(path, takes_only_one=signature is None)
        if signature is None:
            inputs, outputs = (
                [RuntimeTensor(name, shape, _dtype(dtype)) for name, shape, dtype in tensors]
                for tensors in (self._infer.inputs, self._infer.outputs)
            )
            signature = make_signature(path, inputs, outputs, _ADVICE)
        self._signature = signature

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "SavedModel":
        return cls(bundle.entry, bundle.manifest.signature, threads)

    @classmethod
    def from_path(
        cls,
        path: Path,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "SavedModel":
        return cls(path, threads=threads)

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = self._infer(inputs)  # TensorFlow has its own order of outputs.
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}


def _dtype(name: str) -> str:
    return "object" if name == "string" else name
