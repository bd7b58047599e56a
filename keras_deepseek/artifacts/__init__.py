"""The files that travel between processes: bundles, run records and checkpoints."""

from keras_deepseek.artifacts.bundle import Bundle, Manifest, Verification, is_bundle
from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import (
    BundleError,
    CheckpointError,
    ExportError,
    InvalidInputError,
    KerasDeepSeekError,
    MissingExtraError,
    NotSupportedError,
    TrainingDivergedError,
)

__all__ = [
    "Bundle",
    "BundleError",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFolder",
    "ExportError",
    "InvalidInputError",
    "KerasDeepSeekError",
    "Manifest",
    "MissingExtraError",
    "NotSupportedError",
    "RunRecord",
    "Signature",
    "TensorSpec",
    "TrainingDivergedError",
    "Verification",
    "is_bundle",
]


def __dir__() -> list[str]:
    return sorted(__all__)
