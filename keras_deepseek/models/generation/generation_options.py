"""What `generate` and `stream` both take, in one place; `CausalLM.generate` says what each means.

The language model makes these of its arguments, and `Generator` reads and checks them.
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
    """How prompts are gone on with: see `CausalLM.generate`."""

    max_length: int | None = None
    max_new_tokens: int | None = None
    stop_token_ids: Any = "auto"
    sampler: Sampler | str | None = None
    seed: int | None = None
    use_drafts: bool = False


def takes_options(method: Method) -> Method:
    """Gives a method whose last argument is `**options` the signature that it has by these.

    Another option is then a `TypeError` that names the method, and where the option belongs.

    Args:
        method: Function. Those that it names itself are left out.
    """
    *own, _ = inspect.signature(method).parameters.values()
    names = {parameter.name for parameter in own}
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
    signature = inspect.signature(method).replace(parameters=[*own, *options])

    @wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_names(method.__name__, kwargs, list(signature.parameters))
        return method(*args, **kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return cast("Method", checked)


def _check_names(method: str, received: Iterable[str], known: Sequence[str]) -> None:
    """Says, as Python does, that an option is none of the method, and where it belongs."""
    for name in received:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, 1)
        hint = ""
        if name in {field.name for field in fields(Sampler)}:
            hint = f". It is one of the sampler: `sampler=Sampler({name}=...)`"
        elif near:
            hint = f": did you mean {near[0]!r}"
        raise TypeError(f"{method}() got an unexpected keyword argument {name!r}{hint}.")
