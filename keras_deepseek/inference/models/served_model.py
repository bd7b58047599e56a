"""The versions of one model, the choice of one for a request, and their states in protocols."""

import random
import threading
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import TypeVar

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.errors import ModelNotFoundError
from keras_deepseek.inference.models.version import FailedVersion, Version
from keras_deepseek.inference.protocols.open_inference_models import ModelState
from keras_deepseek.inference.protocols.tf_serving import VersionStatus

_Value = TypeVar("_Value")

MAX_FAILED = 16
"""The number of failed versions that are remembered: the last ones."""

PLATFORM = "keras_deepseek"
"""The platform of a model in Open Inference's metadata."""

_MOST_DIGITS = 20
"""Version numbers have fewer digits: TF Serving's are int64. Longer texts would be slow to read."""


class ServedModel:
    """The versions of a model by number, their labels, and the traffic shares of trial versions.

    A request without a version and a label goes to the newest version that is available and not on
    trial, or to one on trial, with the probability of its share.
    """

    def __init__(self, name: str, draw: Callable[[], float] = random.random) -> None:
        self.name = name
        self._draw = draw
        self._lock = threading.Lock()
        # These are replaced, not changed, so reading needs no lock. The newest comes last.
        self._versions: dict[int, Version] = {}
        self._failed: Mapping[int, FailedVersion] = {}
        self._labels: Mapping[str, int] = {}
        self._shares: Mapping[int, float] = {}

    @property
    def versions(self) -> Mapping[int, Version]:
        """All versions that are loading, available or unloading, by rising number."""
        return self._versions

    @property
    def failed(self) -> Mapping[int, FailedVersion]:
        """The last versions that failed to load or to warm up, by number.

        If a version failed that was to replace another of its number, the other stays in
        `versions`.
        """
        return self._failed

    @property
    def states(self) -> Mapping[int, Version | FailedVersion]:
        """All versions, including failed ones, by ascending number."""
        states: dict[int, Version | FailedVersion] = {**self._failed, **self._versions}
        return dict(sorted(states.items()))

    @property
    def on_trial(self) -> Mapping[int, float]:
        """The fraction of requests that each version on trial gets."""
        return self._shares

    @property
    def labels(self) -> Mapping[str, int]:
        """The version number of each label."""
        return self._labels

    def newest(self) -> Version:
        """Returns the newest version that is available and not on trial, else the newest of all."""
        versions, shares = self._versions, self._shares
        if not versions:
            raise ModelNotFoundError(f"The model {self.name!r} has no version.")
        for number in reversed(versions):
            if number not in shares and _is_available(versions[number]):
                return versions[number]
        return versions[next(reversed(versions))]

    def find_replaced(self, number: int) -> Version | None:
        """Returns the version whose requests a new version with this number would get, if any."""
        newest = self.newest() if self._versions else None
        is_newer = newest is not None and number > newest.number
        return newest if is_newer else self._versions.get(number)

    def find(self, version: int | None = None, label: str = "") -> Version:
        """Returns the version for a request, by number or label, or the newest or one on trial."""
        if label:
            if version is not None:
                raise InvalidInputError(
                    f"Received both version {version} and label {label!r}. Give one of them."
                )
            version = self._labels.get(label)
            if version is None:
                raise ModelNotFoundError(
                    f"The model {self.name!r} has no label {label!r}; it has {list(self._labels)}."
                )
        elif version is None:
            return self._default()
        elif not isinstance(version, Integral) or isinstance(version, bool):
            raise InvalidInputError(f"Received version={version!r}. Expected an integer.")
        model_version = self._versions.get(version)
        if model_version is None:
            failed = self._failed.get(version)
            if failed is not None and failed.is_waiting:
                raise ModelNotFoundError(failed.error)
            why = "" if failed is None else f": it failed with {failed.kind}"
            raise ModelNotFoundError(
                f"The model {self.name!r} has no version {version}{why}; it has "
                f"{list(self._versions)}."
            )
        return model_version

    def add(self, version: Version, share: float | None = None) -> None:
        """Adds a version, on trial if it has a `share`, and replaces one with the same number."""
        with self._lock:
            if share is not None:
                self._shares = self._with_share(version.number, share)
            versions = {**self._versions, version.number: version}
            self._versions = dict(sorted(versions.items()))
            self._failed = _without(self._failed, version.number)

    def fail(self, number: int, error: BaseException, version: Version | None = None) -> None:
        """Records why a version failed, and removes the version."""
        failed = {**_without(self._failed, number), number: FailedVersion.of(number, error)}
        if version is not None:
            self.remove(version)
        with self._lock:
            self._failed = dict(list(failed.items())[-MAX_FAILED:])

    def forget_failure(self, number: int) -> None:
        """Removes the record of a failed version."""
        with self._lock:
            self._failed = _without(self._failed, number)

    def remove(self, version: Version) -> None:
        """Removes a version, its labels and its share, unless a new version has replaced it."""
        number = version.number
        with self._lock:
            if self._versions.get(number) is not version:
                return
            self._versions = _without(self._versions, number)
            self._failed = _without(self._failed, number)
            self._labels = {
                label: labelled for label, labelled in self._labels.items() if labelled != number
            }
            self._shares = _without(self._shares, number)

    def surplus(self, loaded: Version, keep: int) -> list[Version]:
        """Returns the oldest versions to close so that `keep` stay, not counting those on trial."""
        shares = self._shares
        stable = [
            version
            for number, version in self._versions.items()
            if version is not loaded and number not in shares
        ]
        num_others = keep if loaded.number in shares else keep - 1
        return stable[: max(len(stable) - num_others, 0)]

    def set_labels(self, labels: Mapping[str, int]) -> None:
        """Replaces all labels, or changes nothing if a labelled version is not available."""
        with self._lock:
            for number in labels.values():
                self._check_available(number)
            self._labels = dict(labels)

    def set_share(self, number: int, share: float) -> None:
        """Puts a version on trial, or ends its trial.

        `share` is the fraction of requests that go to it. With `0` it gets only requests with its
        number or label. With `1` its trial ends.
        """
        with self._lock:
            self._check_available(number)
            self._shares = self._with_share(number, share)

    def check_share(self, number: int, share: float) -> None:
        """Raises an error for a share outside 0 to 1, or if all shares add up to more than 1."""
        self._with_share(number, share)

    def _default(self) -> Version:
        versions, shares = self._versions, self._shares
        if shares:
            point = self._draw()
            for number, share in shares.items():
                point -= share
                on_trial = versions.get(number)
                if point < 0 and on_trial is not None and _is_available(on_trial):
                    return on_trial
        return self.newest()

    def _with_share(self, number: int, share: float) -> dict[int, float]:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InvalidInputError(f"Received share={share!r}. Expected a number from 0 to 1.")
        shares = _without(self._shares, number)
        if share < 1:
            shares[number] = float(share)
        if sum(shares.values()) > 1:
            raise InvalidInputError(
                f"The shares of versions on trial add up to more than 1: {shares}."
            )
        return shares

    def _check_available(self, number: int) -> None:
        if not _is_available(self._versions.get(number)):
            raise ModelNotFoundError(
                f"The model {self.name!r} has no available version {number}; it has "
                f"{ {key: version.state for key, version in self._versions.items()} }."
            )


class ServedModels(dict[str, ServedModel]):
    """The served models by name. A name that is not among them raises `ModelNotFoundError`."""

    def __missing__(self, name: str) -> ServedModel:
        raise ModelNotFoundError(f"There is no model {name!r}; those served are {[*self]}.")


def version_number(text: str) -> int | None:
    """Parses a version number; returns `None` if the text is not one."""
    return int(text) if text.isdecimal() and len(text) < _MOST_DIGITS else None


def version_status(version: Version | FailedVersion, is_ready: bool) -> VersionStatus:
    """Returns TF Serving's status of a version, and why one waits.

    Only the log has the reason of a failure.

    `is_ready` is False if the server is starting or stopping.
    """
    state: str = version.state
    if state == "AVAILABLE" and not is_ready:
        state = "UNLOADING"
    if version.error is None:
        return VersionStatus(version.number, state)
    if isinstance(version, FailedVersion) and version.is_waiting:
        return VersionStatus(version.number, state, "FAILED_PRECONDITION", version.error)
    kind = version.kind if isinstance(version, FailedVersion) else type(version.error).__name__
    message = f"It failed with {kind}; see the server's log."
    return VersionStatus(version.number, state, "UNKNOWN", message)


def find_states(served: ServedModel | None, version: int | None) -> list[Version | FailedVersion]:
    """Returns the given version of a model, or all versions, including failed ones."""
    states = {} if served is None else served.states
    return [state for number, state in states.items() if version in (None, number)]


def repository_states(models: Mapping[str, ServedModel]) -> list[ModelState]:
    """Returns Open Inference's state of every version of every model."""
    return [
        ModelState(name, str(number), version.state == "AVAILABLE", _reason_of(version))
        for name, served in models.items()
        for number, version in served.states.items()
    ]


def find_waiting(models: Mapping[str, ServedModel]) -> dict[str, dict[str, list[int]]]:
    """Returns the numbers of the versions that wait, as a field of the answer to health checks."""
    numbers = {
        name: [number for number, version in served.failed.items() if version.is_waiting]
        for name, served in models.items()
    }
    waiting = {name: versions for name, versions in numbers.items() if versions}
    return {"waiting": waiting} if waiting else {}


def _reason_of(version: Version | FailedVersion) -> str:
    is_waiting = isinstance(version, FailedVersion) and version.is_waiting
    return str(version.error) if is_waiting else version.state


def _without(by_number: Mapping[int, _Value], number: int) -> dict[int, _Value]:
    return {key: value for key, value in by_number.items() if key != number}


def _is_available(version: Version | None) -> bool:
    return version is not None and version.state == "AVAILABLE"
