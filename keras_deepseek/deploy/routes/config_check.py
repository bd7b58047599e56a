"""A check that another process can recreate a model's classes from their configs.

Keras reports a class that can't be recreated only as "could not be deserialized properly", once the
process has started.
"""

import inspect
from collections.abc import Iterator

import keras

from keras_deepseek.backend.export.named_model import ModelWrapper
from keras_deepseek.backend.keras_private.layers import functional_graph
from keras_deepseek.errors import ExportError


def check_configs(model: keras.Model) -> None:
    """Raises an `ExportError` if a model has classes that can't be recreated from their config.

    It says what to change.
    """
    problems = dict.fromkeys(_find_problems(model))
    if problems:
        raise ExportError(f"another process can't recreate the model: {'; '.join(problems)}")


def _find_problems(layer: keras.Layer) -> Iterator[str]:
    """Yields the problems of a layer, or those of the layers in a Functional model."""
    graph = functional_graph(layer)
    if isinstance(layer, ModelWrapper):
        yield from _find_problems(layer.original)
    elif graph is not None:
        for operation in graph.operations:
            if isinstance(operation, keras.Layer) and operation is not layer:
                yield from _find_problems(operation)
    elif problem := _find_problem(layer):
        yield problem


def _find_problem(layer: keras.Layer) -> str | None:
    """Says why a layer of a custom class can't be recreated from its config, or returns `None`."""
    kind = type(layer)
    if kind.__module__.partition(".")[0] == "keras" or not _is_from_keras(kind, "from_config"):
        return None
    try:
        config = layer.get_config()
    except NotImplementedError:
        arguments = [parameter.name for parameter in _named(_parameters(kind))]
        return (
            f"class {kind.__name__} has no get_config(). Add one that returns "
            f"{{**super().get_config(), ...}} with each argument of its __init__ ("
            f"{', '.join(arguments)}), and let __init__ hand **kwargs on to super().__init__"
        )
    except Exception as error:  # noqa: BLE001 - it is the user's own code.
        return f"get_config() of class {kind.__name__} raises {type(error).__name__}: {error}"
    parameters = _parameters(kind)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    unknown = [name for name in config if name not in {parameter.name for parameter in parameters}]
    if unknown and not takes_any:
        return (
            f"__init__ of class {kind.__name__} does not take {', '.join(map(repr, unknown))}. "
            "Write `def __init__(self, ..., **kwargs)` with `super().__init__(**kwargs)` in it"
        )
    missing = [
        parameter.name
        for parameter in _named(parameters)
        if parameter.name not in config and _is_needed(layer, parameter)
    ]
    if missing:
        return (
            f"get_config() of class {kind.__name__} leaves out {', '.join(map(repr, missing))}. "
            "Return each argument of __init__ in it, beside those of super().get_config()"
        )
    return None


def _parameters(kind: type) -> list[inspect.Parameter]:
    """Returns the parameters of a class's `__init__`, except `self`."""
    init = vars(_home(kind, "__init__"))["__init__"]
    return [*inspect.signature(init).parameters.values()][1:]


def _named(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [
        parameter
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _is_needed(layer: keras.Layer, parameter: inspect.Parameter) -> bool:
    """Returns True if an argument has no default, or the layer has another plain value for it."""
    if parameter.default is parameter.empty:
        return True
    value = getattr(layer, parameter.name, parameter.default)
    is_plain = isinstance(value, str | int | float | bool)
    return is_plain and value != parameter.default


def _home(kind: type, method: str) -> type:
    """Returns the class that defines a method of `kind`: itself or the nearest base class."""
    return next(base for base in kind.__mro__ if method in vars(base))


def _is_from_keras(kind: type, method: str) -> bool:
    return _home(kind, method).__module__.partition(".")[0] == "keras"
