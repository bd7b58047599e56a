"""The Kubernetes operator: serves a `ModelDeployment`, and scales it by its requests.

It needs the extra `operator`, and never imports Keras.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_deepseek.operator.api import ModelDeployment

__all__ = ["ModelDeployment"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from keras_deepseek.operator import api
    except ModuleNotFoundError as error:
        from keras_deepseek.errors import MissingExtraError

        raise MissingExtraError(str(error.name), "operator", "for the operator") from error
    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
