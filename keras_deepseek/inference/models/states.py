"""Numbers and states of versions in the words of the protocols, for both kinds of servers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from keras_deepseek.inference.models.failed_version import FailedVersion
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.protocols.open_inference_models import ModelState
from keras_deepseek.inference.protocols.tf_serving import VersionStatus

if TYPE_CHECKING:
    from keras_deepseek.inference.models.served_model import ServedModel

PLATFORM = "keras_deepseek"
"""What runs the models, as clients of Open Inference are told."""


MOST_DIGITS = 20
"""Versions have fewer: TF Serving's are int64. A number of a million digits would take long."""


def version_number(text: str) -> int | None:
    """Returns the version that a client names, or `None` where it is no number of one."""
    return int(text) if text.isdecimal() and len(text) < MOST_DIGITS else None


def version_status(version: ModelVersion | FailedVersion, is_ready: bool) -> VersionStatus:
    """Returns TF Serving's status of a version; why one has failed stands in the log alone.

    Args:
        version: `ModelVersion`, or `FailedVersion`.
        is_ready: boolean. Whether the server answers requests.
    """
    state: str = version.state
    if state == "AVAILABLE" and not is_ready:
        state = "UNLOADING"
    if version.error is None:
        return VersionStatus(version.number, state)
    kind = version.kind if isinstance(version, FailedVersion) else type(version.error).__name__
    message = f"It failed with {kind}; see the server's log."
    return VersionStatus(version.number, state, "UNKNOWN", message)


def find_states(
    served: "ServedModel | None", version: int | None
) -> list[ModelVersion | FailedVersion]:
    """Returns the versions that a question for states is about: one, or all, or none.

    Args:
        served: `ServedModel`, or `None` where there is no such model.
        version: integer, or `None` for all.
    """
    states = {} if served is None else served.states
    return [one for number, one in states.items() if version in (None, number)]


def repository_states(models: "Mapping[str, ServedModel]") -> list[ModelState]:
    """Returns Open Inference's state of every version of every model."""
    return [
        ModelState(name, str(number), version.state == "AVAILABLE", version.state)
        for name, served in models.items()
        for number, version in served.states.items()
    ]
