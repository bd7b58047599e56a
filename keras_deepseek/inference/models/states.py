"""The numbers and states of versions in the words of the protocols, for HTTP and gRPC."""

from collections.abc import Mapping

from keras_deepseek.inference.models.model_version import FailedVersion, ModelVersion
from keras_deepseek.inference.models.served_model import ServedModel
from keras_deepseek.inference.protocols.open_inference_models import ModelState
from keras_deepseek.inference.protocols.tf_serving import VersionStatus

PLATFORM = "keras_deepseek"
"""The platform of a model in Open Inference's metadata."""


MOST_DIGITS = 20
"""Version numbers have fewer digits: TF Serving's are int64. Longer texts would be slow to read."""


def version_number(text: str) -> int | None:
    """Parses a version number; returns `None` if the text is not one."""
    return int(text) if text.isdecimal() and len(text) < MOST_DIGITS else None


def version_status(version: ModelVersion | FailedVersion, is_ready: bool) -> VersionStatus:
    """Returns TF Serving's status of a version. Only the log has the reason of a failure.

    `is_ready` is False if the server is starting or stopping.
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
    served: ServedModel | None, version: int | None
) -> list[ModelVersion | FailedVersion]:
    """Returns the given version of a model, or all versions, including failed ones."""
    states = {} if served is None else served.states
    return [state for number, state in states.items() if version in (None, number)]


def repository_states(models: Mapping[str, ServedModel]) -> list[ModelState]:
    """Returns Open Inference's state of every version of every model."""
    return [
        ModelState(name, str(number), version.state == "AVAILABLE", version.state)
        for name, served in models.items()
        for number, version in served.states.items()
    ]
