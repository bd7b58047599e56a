"""The options of a single request."""

from collections.abc import Hashable
from typing import TypedDict


class RequestOptions(TypedDict, total=False):
    """Options of `ServingEngine.predict`, `predict_async`, `submit` and `submit_async`.

    Args:
        model: string. The model's name. Defaults to `None`: the engine's own.
        version: integer. Defaults to `None`: the newest, or one on trial.
        label: string. A label instead of a version. Defaults to `""`.
        timeout: float. Seconds after which the answer is useless. A late request is not run, and a
            request that would be late is refused. Defaults to `None`: no limit.
        priority: integer. Requests of the same model with a higher priority run first. Defaults to
            `0`.
        client: A hashable value. Requests with the same value are answered in their order. Defaults
            to `None`: each is answered as soon as it is computed.
    """

    model: str | None
    version: int | None
    label: str
    timeout: float | None
    priority: int
    client: Hashable
