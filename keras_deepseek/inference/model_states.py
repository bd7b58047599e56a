"""Numbers and states of versions in the words of the protocols, for both kinds of servers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from keras_deepseek.inference.model_version import ModelVersion
from keras_deepseek.inference.protocols.open_inference_models import ModelState
from keras_deepseek.inference.protocols.tf_serving import VersionStatus

if TYPE_CHECKING:
    from keras_deepseek.inference.served_model import ServedModel

PLATFORM = "keras_deepseek"
"""What runs the models, as clients of Open Inference are told."""


MOST_DIGITS = 20
"""Versions have fewer: TF Serving's are int64. A number of a million digits would take long."""


def version_number(text: str) -> int | None:
    """Returns the version that a client names, or `None` where it is no number of one.

    Args:
        text: string.
    """
    return int(text) if text.isdecimal() and len(text) < MOST_DIGITS else None


def version_status(version: ModelVersion, is_ready: bool) -> VersionStatus:
    """Returns TF Serving's status of a version; why one has failed stands in the log alone.

    Args:
        version: `ModelVersion`.
        is_ready: boolean. Whether the server answers requests.
    """
    state: str = version.state
    if state == "AVAILABLE" and not is_ready:
        state = "UNLOADING"
    if version.error is None:
        return VersionStatus(version.number, state)
    kind = type(version.error).__name__
    message = f"It failed with {kind}; see the server's log."
    return VersionStatus(version.number, state, "UNKNOWN", message)


def repository_states(models: "Mapping[str, ServedModel]") -> list[ModelState]:
    """Returns Open Inference's state of every version of every model.

    Args:
        models: mapping of `ServedModel` by name.
    """
    return [
        ModelState(name, str(number), version.state == "AVAILABLE", version.state)
        for name, served in models.items()
        for number, version in served.versions.items()
    ]
