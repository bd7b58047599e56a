"""The text of one choice, written from its tokens, and its random numbers."""

import functools
from collections.abc import Callable

import numpy as np

from keras_deepseek.inference.text.text_answer import TextAnswer, TextPiece, TokenDetail
from keras_deepseek.inference.text.text_request import TextEvent, TextRequest
from keras_deepseek.text.row_model import LogProbabilities, TextTokenizer
from keras_deepseek.text.stop_strings import StopFilter, StopStrings

TokenText = Callable[[int], str]
"""A function that returns the text of a token by itself."""

NUM_TEXTS = 2**16
"""The most tokens whose texts are remembered."""


def make_token_text(tokenizer: TextTokenizer) -> TokenText:
    """Returns a function that gives a token's text, with the space that may stand before it."""

    @functools.lru_cache(NUM_TEXTS)
    def token_text(token_id: int) -> str:
        # Some tokenizers drop the space before the first token of a text.
        text: str = tokenizer.detokenize([token_id] * 2, skip_special_tokens=False)
        return text[len(tokenizer.detokenize([token_id], skip_special_tokens=False)) :]

    return token_text


class ChoiceWriter:
    """Writes the text of one choice.

    With the number of the choice `seed` gives the random numbers, one for each token.
    """

    def __init__(
        self,
        request: TextRequest,
        answer: TextAnswer,
        *,
        tokenizer: TextTokenizer,
        token_text: TokenText,
        seed: int,
        stops: StopStrings | None = None,
        wants_prompt: bool = False,
        keeps_special_tokens: bool = False,
    ) -> None:
        self.request = request
        self.answer = answer
        self.wants_prompt = wants_prompt
        self.last_time: float | None = None
        """The time of the last token."""
        self._decoder = tokenizer.stream(skip_special_tokens=not keeps_special_tokens)
        self._token_text = token_text
        self._filter = None if stops is None else StopFilter(stops)
        self._num_alternatives = request.sampling.num_alternatives
        self._noise = (
            np.random.default_rng([seed, request.choice]) if request.sampling.temperature else None
        )
        self._prompt_details: list[TokenDetail] = []

    def draw(self) -> float:
        """Returns the random number for the next token."""
        return 0.0 if self._noise is None else self._noise.random()

    def write(self, event: TextEvent, outputs: LogProbabilities) -> TextPiece:
        """Returns the piece of text that the token of an event adds.

        It ends with the reason `"stop"`, if a stop string does. Without a token, it is the end.
        """
        token, kind = event.token, event.kind
        if token is None:
            return TextPiece(self.request.choice, "", (), kind)
        # A stop token is no part of the text.
        text = "" if kind == "stop" else self._decoder.push(token)
        if kind != "token":
            text += self._decoder.finish()
        is_stopped = False
        if self._filter is not None:
            text = self._filter.push(text)
            is_stopped = self._filter.is_stopped
            if kind != "token" and not is_stopped:
                text += self._filter.finish()
        details: tuple[TokenDetail, ...] = ()
        if self._num_alternatives is not None:
            details = (self._detail(token, outputs, event.row),)
        reason = "stop" if is_stopped else None if kind == "token" else kind
        return TextPiece(self.request.choice, text, details, reason)

    def add_prompt(self, outputs: LogProbabilities, start: int, stop: int) -> None:
        """Adds the log-probabilities of the tokens of a prompt that follow those of a chunk."""
        prompt = self.request.prompt
        if not start:
            self._prompt_details = [TokenDetail(prompt[0], self._token_text(prompt[0]), None)]
        self._prompt_details += [
            self._detail(prompt[index], outputs, index - start - 1)
            for index in range(start + 1, min(stop + 1, len(prompt)))
        ]
        if stop == len(prompt):
            self.answer.prompt_details = tuple(self._prompt_details)

    def _detail(self, token: int, outputs: LogProbabilities, row: int) -> TokenDetail:
        values = outputs.log_probabilities
        tokens, top_values = outputs.top_tokens, outputs.top_log_probabilities
        assert values is not None
        assert tokens is not None
        assert top_values is not None
        number = self._num_alternatives
        pairs = zip(tokens[row, :number].tolist(), top_values[row, :number].tolist(), strict=True)
        alternatives = tuple(TokenDetail(x, self._token_text(x), value) for x, value in pairs)
        return TokenDetail(token, self._token_text(token), float(values[row]), alternatives)
