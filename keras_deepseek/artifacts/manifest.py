"""What a bundle says about itself: the text of its `bundle.json`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.errors import BundleError

FORM = 3
"""The form of the manifest that this release writes. A reader refuses a higher one."""


@dataclass(frozen=True)
class Verification:
    """Whether an artifact was seen to compute what its model computes.

    Args:
        state: `"verified"`, or `"unverified"` or `"failed"` with a reason. (What failed is written
            where `verify="warn"` asks for it alone.)
        reason: string. Why it is not verified; empty otherwise.
        num_samples: integer. Batches that were compared.
        largest_difference: float. The largest absolute difference of any output of any sample.
        agreement: dict. By output name, how near outputs of less precision are to the model's:
            `deploy.verify.agreements` says what its numbers are. Empty where they should be equal.
        signatures: tuple of strings. What was compared of a SavedModel, as in `("serving_default",
            "serving_classify")`. Defaults to `()`: the artifact is one function.
    """

    state: Literal["verified", "unverified", "failed"]
    reason: str = ""
    num_samples: int = 0
    largest_difference: float = 0.0
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    signatures: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Verification":
        """Returns what the manifest holds of one."""
        given = {**content}
        return cls(**{**given, "signatures": tuple(given.get("signatures", ()))})


@dataclass(frozen=True)
class Manifest:
    """The names, shapes, origin and state of what a bundle holds.

    Args:
        name: string. The model's name.
        format: string. `"onnx"`, `"savedmodel"`, `"tensorrt"`, or a registered one.
        entry: string. The file to load, relative to the bundle; `"."` where it is the whole folder.
        signature: `Signature`.
        precision: string. The dtype that the artifact computes in.
        route: string. How it was made, as in `"tf2onnx in a TensorFlow process"`.
        versions: dict. The release of each package that took part.
        created: string. When it was made: ISO 8601, UTC.
        verification: `Verification`.
        files: dict. For each file its `sha256` and its size in `bytes`; filled in when it is
            written.
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
        """Returns the text of `bundle.json`: sealed by a hash of its own content."""
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
        """Returns the manifest that `to_json` wrote.

        Args:
            text: string. The content of a `bundle.json`.

        Raises:
            BundleError: The text is cut short, was altered, or is of a newer form.
        """
        try:
            content = json.loads(text)
            seal = content.pop("sha256")
            form = int(content.pop("form"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"The manifest is cut short or not one of ours: {error}.") from error
        if form > FORM:
            raise BundleError(
                f"The manifest is of form {form}; this release reads up to {FORM}. "
                "Upgrade keras_deepseek."
            )
        if seal != _seal({"form": form, **content}):
            raise BundleError("The manifest was altered after it was written.")
        try:
            return cls(
                **{
                    **content,
                    "signature": Signature.from_dict(content["signature"]),
                    "verification": Verification.from_dict(content["verification"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise BundleError(f"The manifest lacks what form {form} has: {error}.") from error


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
