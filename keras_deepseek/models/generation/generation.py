"""The implementation of `generate` and `stream` of language models.

It checks the arguments and encodes the prompts before anything runs, gets tokens from `token_loop`,
and returns them as lists or text.
"""

import difflib
import inspect
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.generation.compiled_steps import CompiledSteps
from keras_deepseek.models.generation.prompts import find_end_tokens, read_prompts, read_stop_tokens
from keras_deepseek.models.generation.sampler import Sampler, get_sampler
from keras_deepseek.models.generation.speculative_steps import check_drafts
from keras_deepseek.models.generation.token_loop import NewToken, TokenRequest, generate_tokens
from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder

_CONTEXT = 8
"""The number of prompt tokens that are decoded together with the first new ones."""


class TextStream:
    """A decoder of the tokens that follow a prompt.

    The text of a token may depend on the one before it: a word at the start of a text has no space
    before it. So the end of the prompt is decoded first. End tokens leave no text.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], end_tokens: Collection[int]) -> None:
        self._decoder = StreamDecoder(tokenizer.detokenize)
        self._end_tokens = end_tokens
        for token in prompt[-_CONTEXT:]:
            self._decoder.push(token)

    def push(self, token: int) -> str:
        """Returns the text that one more token adds; `""` while a character is incomplete."""
        return "" if token in self._end_tokens else self._decoder.push(token)

    def finish(self) -> str:
        """Returns the text that was held back because its last character was incomplete."""
        return self._decoder.finish()


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


class Generator:
    """A text generator for one `CausalLM`, with its compiled functions."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._steps = CompiledSteps(model)

    def request(
        self,
        inputs: Any,
        options: GenerationOptions,
        *,
        return_log_probabilities: bool = False,
    ) -> TokenRequest:
        """Checks the arguments of `CausalLM.generate`, and returns them as a request object."""
        model = self._model
        if check_boolean("use_drafts", options.use_drafts):
            check_drafts(model)
        vocabulary_size = model.backbone.token_embedding.input_dim
        prompts = read_prompts(inputs, self.tokenizer, vocabulary_size)
        stops = read_stop_tokens(
            options.stop_token_ids, find_end_tokens(model), len(prompts.rows), vocabulary_size
        )
        context = read_context(model)
        budgets = settle_budgets(
            [len(row) for row in prompts.rows],
            context,
            options.max_length,
            options.max_new_tokens,
        )
        return TokenRequest(
            prompts,
            budgets,
            stops,
            get_sampler(options.sampler),
            _read_seed(options.seed),
            check_boolean("return_log_probabilities", return_log_probabilities),
            options.use_drafts,
            context,
        )

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or `None`."""
        return self._model.tokenizer

    def generate(self, request: TokenRequest, *, strip_prompt: bool) -> Any:
        """Generates all tokens of a request, and returns them as `CausalLM.generate` does."""
        tokens: list[list[NewToken]] = [[] for _ in request.prompts.rows]
        for step in generate_tokens(self._steps, request):
            for row, token in zip(tokens, step, strict=True):
                if token is not None:
                    row.append(token)
        is_single = request.prompts.is_single
        outputs = [
            self._join(request, row, new_tokens, strip_prompt=strip_prompt)
            for row, new_tokens in enumerate(tokens)
        ]
        if not request.has_log_probabilities:
            return outputs[0] if is_single else outputs
        logs = [_log_probabilities(new_tokens) for new_tokens in tokens]
        return (outputs[0], logs[0]) if is_single else (outputs, logs)

    def _join(
        self, request: TokenRequest, row: int, new_tokens: list[NewToken], *, strip_prompt: bool
    ) -> Any:
        """Returns a row's prompt and new tokens, as text or token ids like the prompt."""
        prompts, tokens = request.prompts, [token.token for token in new_tokens]
        if prompts.texts is None:
            return tokens if strip_prompt else [*prompts.rows[row], *tokens]
        text = self._read_text(request, row, tokens)
        return text if strip_prompt else prompts.texts[row] + text

    def _read_text(self, request: TokenRequest, row: int, tokens: list[int]) -> str:
        stream = self._stream_text(request, row)
        return "".join([*map(stream.push, tokens), stream.finish()])

    def _stream_text(self, request: TokenRequest, row: int) -> TextStream:
        return TextStream(self.tokenizer, request.prompts.rows[row], request.stop_tokens[row])

    def stream(self, request: TokenRequest) -> Iterator[Any]:
        """Yields the tokens or the text that each decode step adds, as soon as it is computed."""
        prompts = request.prompts
        streams = [
            self._stream_text(request, row) if prompts.is_text else None
            for row in range(len(prompts.rows))
        ]
        for step in generate_tokens(self._steps, request):
            pieces = list(map(_read_piece, step, streams))
            yield pieces[0] if prompts.is_single else pieces


def _read_piece(token: NewToken | None, stream: TextStream | None) -> Any:
    if token is None:
        return None
    if stream is None:
        return token.token
    text = stream.push(token.token)
    return text + stream.finish() if token.is_last else text


def _log_probabilities(tokens: list[NewToken]) -> Array:
    return np.asarray([token.log_probability for token in tokens], "float32")


def _read_seed(seed: int | None) -> int:
    if seed is None:
        return random.getrandbits(64)
    return check_integer("seed", seed, minimum=0)


def read_context(model: Any) -> int | None:
    """Returns the model's context length in tokens, or `None` if it has no limit."""
    context: int | None = getattr(model.config, "max_length", None)
    return context


def settle_budgets(
    prompt_lengths: list[int],
    context: int | None,
    max_length: int | None,
    max_new_tokens: int | None,
) -> list[int]:
    """Checks the length limits, and returns the number of new tokens that each row may get.

    `context` is the number of tokens that the model takes. `max_length` includes the prompt.
    """
    longest = max(prompt_lengths)
    if context is not None and longest >= context:
        raise InvalidInputError(
            f"A prompt has {longest} tokens, and the model's context is {context}: there is no "
            "room for an answer. Shorten the prompt."
        )
    if max_length is not None and longest >= check_integer("max_length", max_length):
        raise InvalidInputError(
            f"`max_length` is {max_length}, prompt included, and a prompt has {longest} tokens. "
            "Raise it, or give `max_new_tokens`."
        )
    if max_new_tokens is not None:
        check_integer("max_new_tokens", max_new_tokens)
    if context is None and max_length is None and max_new_tokens is None:
        raise InvalidInputError(
            "The number of tokens has no limit: give `max_new_tokens` or `max_length`."
        )
    totals = [total for total in (context, max_length) if total is not None]
    new_limits = [] if max_new_tokens is None else [max_new_tokens]
    return [min([total - length for total in totals] + new_limits) for length in prompt_lengths]
