"""The implementation of `generate` and `stream` of language models.

It checks the arguments and encodes the prompts before anything runs, gets tokens from `token_loop`,
and returns them as lists or text.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.models.generation.budget import settle_budgets
from keras_deepseek.models.generation.compiled_steps import CompiledSteps
from keras_deepseek.models.generation.generation_options import GenerationOptions
from keras_deepseek.models.generation.prompts import find_end_tokens, read_prompts, read_stop_tokens
from keras_deepseek.models.generation.sampler import get_sampler
from keras_deepseek.models.generation.speculative_steps import check_drafts
from keras_deepseek.models.generation.text_stream import TextStream
from keras_deepseek.models.generation.token_loop import NewToken, TokenRequest, generate_tokens


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
