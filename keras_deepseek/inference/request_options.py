"""What may be said of a request, beside its inputs."""

from collections.abc import Hashable
from typing import TypedDict


class RequestOptions(TypedDict, total=False):
    """Options of `ServingEngine.predict`, `predict_async`, `submit` and `submit_async`.

    Args:
        model: string. The model's name. Defaults to `None`: the engine's own.
        version: integer. Defaults to `None`: the newest, or one on trial.
        label: string. In place of a version. Defaults to `""`.
        timeout: float. Seconds after which nobody wants the answer: a request that is late is not
            run, and one that would be late is refused. Defaults to `None`: it never is.
        priority: integer. Of those that wait for the same model, higher ones are run first.
            Defaults to `0`.
        client: A hashable value: requests that have it are answered in their order. Defaults to
            `None`: each is answered when it is done.
    """

    model: str | None
    version: int | None
    label: str
    timeout: float | None
    priority: int
    client: Hashable
