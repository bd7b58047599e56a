"""What `generate` and `stream` both take, in one place; `CausalLM.generate` says what each means.

The language model makes these of its arguments, and `Generator` reads and checks them.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

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
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method
