"""A request for a text and its answer in OpenAI's form, for the log of requests."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_deepseek.inference.text.text_answer import TextAnswer


def is_chat(prompt: Any) -> bool:
    """Returns True for chat messages, in place of a text or token ids."""
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)
    return is_list and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def describe_answer(answer: TextAnswer, body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a request and its answer that is over, or its error, for the log of requests.

    A prompt that is no text is logged as its tokens. The text of a chat's answer is what the model
    wrote, with its reasoning and tool calls.
    """
    request = dict(body)
    if not isinstance(body.get("prompt", ""), str):
        request["prompt"] = answer.requests[0].prompt.tolist()
    try:
        result = answer.result(0)
    except Exception as error:  # noqa: BLE001 - the reader of the answer gets it, too.
        return {"request": request, "error": type(error).__name__}
    choices: list[dict[str, Any]] = [
        {
            "index": number,
            "finish_reason": choice.finish_reason,
            **(
                {"message": {"role": "assistant", "content": choice.text}}
                if "messages" in body
                else {"text": choice.text}
            ),
        }
        for number, choice in enumerate(result.choices)
    ]
    usage = {
        "prompt_tokens": result.num_prompt_tokens,
        "completion_tokens": result.num_tokens,
        "total_tokens": result.num_prompt_tokens + result.num_tokens,
    }
    return {"request": request, "response": {"choices": choices, "usage": usage}}
