"""The manifest of a bundle: the content of its `bundle.json`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.errors import BundleError

EXPORT_AGAIN = "Export it again, or copy the whole folder again."
FORM = 4
"""The version of the manifest that this release writes. A higher version is refused."""
ALIKE = "alike"
"""The value of `Verification.nonfinite` for an artifact that does as the model."""


@dataclass(frozen=True)
class Verification:
    """The state of an artifact: whether it was seen to compute what its model computes.

    Args:
        state: `"verified"`, or `"unverified"` or `"failed"` with a reason. A failed artifact is
            written only with `verify="warn"`.
        reason: string. Why it is not verified. Defaults to `""`: it is.
        num_samples: integer. The number of compared batches. Defaults to `0`.
        largest_difference: float. The largest absolute difference of any output of any sample.
            Defaults to `0.0`.
        agreement: dict. For an artifact of less precision, how close each output is to the model's,
            by output name: its relative error, and the share of rows with the same largest value.
            Defaults to an empty dict.
        signatures: tuple of strings. The compared signatures of a SavedModel, as in
            `("serving_default", "serving_classify")`. Defaults to `()`: the artifact is one
            function.
        nonfinite: string. The comparison of outputs for NaN and infinities in the inputs:
            `"alike"`, or the difference, which fails no export. Defaults to `""`: not compared.
    """

    state: Literal["verified", "unverified", "failed"]
    reason: str = ""
    num_samples: int = 0
    largest_difference: float = 0.0
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    signatures: tuple[str, ...] = ()
    nonfinite: str = ""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Verification":
        """Returns the verification that a manifest holds."""
        fields = {**content}
        return cls(**{**fields, "signatures": tuple(fields.get("signatures", ()))})


@dataclass(frozen=True)
class Manifest:
    """The names, shapes, origin and state of the content of a bundle.

    Args:
        name: string. The model's name.
        format: string. The name of the export format, as in `"onnx"`.
        entry: string. The file to load, relative to the bundle; `"."` for the whole folder.
        signature: `Signature`.
        precision: string. The dtype that the artifact computes in.
        route: string. How it was made, as in `"tf2onnx in a TensorFlow process"`.
        versions: dict. The versions of the packages that were installed, by name.
        created: string. When it was made: ISO 8601, UTC.
        verification: `Verification`.
        files: dict. For each file its `sha256` and its size in `bytes`; filled in when it is
            written. Defaults to an empty dict.
    """

    name: str
    format: str
    entry: str
    signature: Signature
    precision: str
    route: str
    versions: Mapping[str, str]
    created: str
    verification: Verification
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the text of `bundle.json`, which includes a hash of its own content."""
        content = {
            "form": FORM,
            "name": self.name,
            "format": self.format,
            "entry": self.entry,
            "signature": self.signature.to_dict(),
            "precision": self.precision,
            "route": self.route,
            "versions": dict(self.versions),
            "created": self.created,
            "verification": vars(self.verification),
            "files": {name: dict(self.files[name]) for name in sorted(self.files)},
        }
        return json.dumps({**content, "sha256": _seal(content)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Reads the text that `to_json` returned.

        Args:
            text: string. The content of a `bundle.json`.

        Returns:
            A `Manifest`.

        Raises:
            BundleError: The text is incomplete, was changed, or is of a newer version.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise BundleError(
                f"The manifest is incomplete, or not JSON: {error}. {EXPORT_AGAIN}"
            ) from error
        if not isinstance(content, dict) or not {"sha256", "form"} <= content.keys():
            raise BundleError(
                "The manifest is not one of keras_deepseek, which have the fields `form` and "
                f"`sha256`. {EXPORT_AGAIN}"
            )
        seal, form = content.pop("sha256"), content.pop("form")
        if not isinstance(form, int) or form > FORM:
            raise BundleError(
                f"The manifest has version {form}; this release reads versions up to {FORM}. "
                "Upgrade keras_deepseek."
            )
        if seal != _seal({"form": form, **content}):
            raise BundleError(f"The manifest was altered after it was written. {EXPORT_AGAIN}")
        try:
            return cls(
                **{
                    **content,
                    "signature": Signature.from_dict(content["signature"]),
                    "verification": Verification.from_dict(content["verification"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise BundleError(
                f"A field of the manifest is missing or wrong: {error}. {EXPORT_AGAIN}"
            ) from error


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
