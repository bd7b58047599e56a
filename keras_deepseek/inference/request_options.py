"""The options of a single request."""

from collections.abc import Hashable
from typing import TypedDict


class RequestOptions(TypedDict, total=False):
    """Options of `ServingEngine.predict`, `predict_async`, `submit` and `submit_async`.

    Args:
        model: The model's name. `None`: the engine's own.
        version: `None`: the newest, or one on trial.
        label: A label instead of a version.
        timeout: Seconds after which the answer is useless. A late request is not run, and a request
            that would be late is refused.
        priority: Requests of the same model with a higher priority run first.
        client: Requests with the same value are answered in their order. `None`: each is answered
            as soon as it is computed.
    """

    model: str | None
    version: int | None
    label: str
    timeout: float | None
    priority: int
    client: Hashable
