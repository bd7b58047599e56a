"""Answers of `/v1/completions`."""

from collections.abc import Iterable, Iterator, Sequence

from keras_deepseek.inference.openai.chunks import Choice, count_usage
from keras_deepseek.inference.openai.completion_request import CompletionRequest
from keras_deepseek.inference.openai.log_probabilities import CompletionDetails
from keras_deepseek.inference.text.text_answer import TextAnswer, TextPiece, TextResult, TokenDetail


class CompletionWriter:
    """Writes the choices of the answers to one or more prompts, in chunks or whole.

    Args:
        request: The request.
        answers: The answers, one for each prompt, whose choices follow each other.
        echoes: The texts with which they begin.
    """

    def __init__(
        self, request: CompletionRequest, answers: Sequence[TextAnswer], echoes: Sequence[str]
    ) -> None:
        self._request = request
        self._answers = answers
        self._echoes = echoes
        self._details: dict[int, CompletionDetails] = {}

    def write(self, number: int, piece: TextPiece) -> Iterator[Choice]:
        """Yields the choice of the chunk for a piece, if it brings anything."""
        index = self._index(number, piece.choice)
        is_first = index not in self._details
        text, tokens = (piece.text, piece.tokens) if self._request.has_answer else ("", ())
        if is_first:
            text = self._echoes[number] + text
            tokens = (*self._answers[number].prompt_details, *tokens)
        details = self._details.setdefault(index, CompletionDetails())
        if text or tokens or piece.finish_reason is not None:
            yield self._choice(index, text, tokens, details, piece.finish_reason)

    def write_whole(self, results: Sequence[TextResult]) -> list[Choice]:
        """Returns the choices of whole answers."""
        choices = []
        for number, result in enumerate(results):
            for position, choice in enumerate(result.choices):
                text, tokens = self._echoes[number], result.prompt_details
                if self._request.has_answer:
                    text, tokens = text + choice.text, (*tokens, *choice.tokens)
                index, details = self._index(number, position), CompletionDetails()
                choices.append(self._choice(index, text, tokens, details, choice.finish_reason))
        return choices

    def count(self) -> dict[str, int]:
        """Returns the `usage` so far."""
        num_tokens = sum(answer.num_tokens for answer in self._answers)
        return count_usage(
            sum(answer.num_prompt_tokens for answer in self._answers),
            num_tokens if self._request.has_answer else 0,
        )

    def _index(self, number: int, choice: int) -> int:
        return number * self._request.body.sampling.n + choice

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Iterable[TokenDetail],
        details: CompletionDetails,
        reason: str | None,
    ) -> Choice:
        has_details = self._request.body.sampling.num_alternatives is not None
        return {
            "index": index,
            "text": text,
            "logprobs": details.format(tokens) if has_details else None,
            "finish_reason": reason,
        }
