"""Requests of `/v1/completions`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.openai.text_body import TextBody, read_flag, read_text_body
from keras_deepseek.text.sampling import SamplingOptions

MAX_PROMPTS = 1024
"""The most answers of one request, to all of its prompts."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for completions alone."""

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class CompletionRequest:
    """A request of `/v1/completions`.

    Args:
        body: The fields that it shares with chats.
        prompts: Texts, or lists of token ids.
        has_echo: True if the answer begins with the prompt.
        has_answer: False if the client wants nothing but the prompt: it asked for no tokens.
    """

    body: TextBody
    prompts: Sequence[Prompt]
    has_echo: bool
    has_answer: bool

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "CompletionRequest":
        """Reads the fields of a request, and raises an error with the name of a wrong one."""
        has_echo = read_flag(content, "echo")
        settings = {"max_tokens": DEFAULT_MAX_TOKENS, **content}
        # To score a prompt, clients ask for its echo and no tokens. The model always writes one.
        has_answer = not (has_echo and settings["max_tokens"] == 0)
        if not has_answer:
            settings["max_tokens"] = 1
        body = read_text_body(content, SamplingOptions.from_request(settings))
        if content.get("best_of", body.sampling.n) != body.sampling.n:
            raise InvalidFieldError(
                "best_of", "`best_of` is not supported, unless it is equal to `n`."
            )
        prompts = _read_prompts(content.get("prompt"))
        if len(prompts) * body.sampling.n > MAX_PROMPTS:
            raise InvalidFieldError(
                "prompt",
                f"A request may have {MAX_PROMPTS} answers; received {len(prompts)} prompts with "
                f"`n` {body.sampling.n}.",
            )
        return cls(body, prompts, has_echo, has_answer)

    @property
    def has_prompt_details(self) -> bool:
        """True if the log-probabilities of the prompt's tokens are asked for."""
        return self.has_echo and self.body.sampling.num_alternatives is not None

    def encode(
        self, tokenize: Callable[[str], Sequence[int]], max_length: int
    ) -> list[Sequence[int]]:
        """Returns the token ids of the prompts.

        Args:
            tokenize: Function that returns those of a text.
            max_length: The most tokens of a prompt and its answer. Longer lists are refused.
        """
        prompts = []
        for prompt in self.prompts:
            if not isinstance(prompt, str) and len(prompt) >= max_length:
                raise InvalidFieldError(
                    "prompt",
                    f"This model's maximum context length is {max_length} tokens, and the prompt "
                    f"has {len(prompt)}.",
                )
            prompts.append(tokenize(prompt) if isinstance(prompt, str) else prompt)
        return prompts

    def echoes(self, detokenize: Callable[..., str]) -> list[str]:
        """Returns the texts with which the answers begin. `detokenize` is the tokenizer's."""
        if not self.has_echo:
            return [""] * len(self.prompts)
        return [
            prompt if isinstance(prompt, str) else detokenize(prompt, skip_special_tokens=False)
            for prompt in self.prompts
        ]


def _read_prompts(prompt: Any) -> Sequence[Prompt]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if is_token_ids(prompt):
            return [prompt]
        if len(prompt) <= MAX_PROMPTS:
            for number, item in enumerate(prompt):
                if not (isinstance(item, str) or is_token_ids(item)):
                    raise InvalidFieldError(
                        f"prompt[{number}]",
                        f"`prompt[{number}]` must be a string or a list of token ids, received "
                        f"{item!r:.50}.",
                    )
            return prompt
        raise InvalidFieldError(
            "prompt",
            f"`prompt` may be a list of {MAX_PROMPTS} prompts, or of token ids; received a list of "
            f"{len(prompt)} others.",
        )
    raise InvalidFieldError(
        "prompt",
        "`prompt` must be a string, a list of token ids, or a list of several such prompts; "
        f"received {prompt!r:.50}.",
    )


def is_token_ids(values: Any) -> bool:
    """Returns True for a list of integers that is not empty."""
    return isinstance(values, list) and set(map(type, values)) == {int}
