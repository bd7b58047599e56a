"""The options that `generate` and `stream` share; `CausalLM.generate` documents them.

The language model makes them from its arguments, and `Generator` checks them.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar, cast

from keras_deepseek.models.generation.sampler import Sampler

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """The options of text generation: see `CausalLM.generate`."""

    max_length: int | None = None
    max_new_tokens: int | None = None
    stop_token_ids: Any = "auto"
    sampler: Sampler | str | None = None
    seed: int | None = None
    use_drafts: bool = False


def takes_options(method: Method) -> Method:
    """A decorator that replaces `**options` in a signature by `GenerationOptions`' fields.

    An unknown option then raises a `TypeError` that names the method and where the option belongs.
    Fields that the method already has as arguments are left out.
    """
    *method_parameters, _ = inspect.signature(method).parameters.values()
    names = {parameter.name for parameter in method_parameters}
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=field.type,
        )
        for field in fields(GenerationOptions)
        if field.name not in names
    ]
    signature = inspect.signature(method).replace(parameters=[*method_parameters, *options])

    @wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_names(method.__name__, kwargs, list(signature.parameters))
        return method(*args, **kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return cast("Method", checked)


def _check_names(method: str, received: Iterable[str], method_parameters: Sequence[str]) -> None:
    """Raises a `TypeError` for an option that the method does not have, as Python would."""
    for name in received:
        if name in method_parameters:
            continue
        near = difflib.get_close_matches(name, method_parameters, 1)
        hint = ""
        if name in {field.name for field in fields(Sampler)}:
            hint = f". It is an option of the sampler: `sampler=Sampler({name}=...)`"
        elif near:
            hint = f": did you mean {near[0]!r}"
        raise TypeError(f"{method}() got an unexpected keyword argument {name!r}{hint}.")
