"""The files that travel between processes: bundles and run records."""

from keras_deepseek.artifacts.bundle import Bundle, is_bundle
from keras_deepseek.artifacts.errors import (
    BundleError,
    ExportError,
    InvalidInputError,
    KerasDeepSeekError,
    MissingExtraError,
    NotSupportedError,
)
from keras_deepseek.artifacts.manifest import Manifest, Verification
from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.artifacts.signature import Signature, TensorSpec

__all__ = [
    "Bundle",
    "BundleError",
    "ExportError",
    "InvalidInputError",
    "KerasDeepSeekError",
    "Manifest",
    "MissingExtraError",
    "NotSupportedError",
    "RunRecord",
    "Signature",
    "TensorSpec",
    "Verification",
    "is_bundle",
]
