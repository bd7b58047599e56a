"""`ServingEngine` with the same model, and its `generate`; see `text_serving.py`.

KERAS_BACKEND=jax python benchmarks/rivals/text_serving_ours.py FOLDER ROWS MAX_LENGTH

The weights are already in the folder. A tokenizer of made-up words is added.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import keras
from text_requests import Answers, TextRequest, answer_questions
from tokenizers import Tokenizer, decoders, models

from keras_deepseek.inference import ServingEngine
from keras_deepseek.models import CausalLM

SECONDS_BETWEEN_LOOKS = 0.002
"""The sleep of the clients between two looks at the clock."""


def write_tokenizer(folder: Path, vocabulary_size: int) -> None:
    """Writes a tokenizer whose tokens are words."""
    words = {f"Ġword{number}": number for number in range(vocabulary_size)}
    tokenizer = Tokenizer(models.WordLevel(words, "Ġword0"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


class Ours:
    """An engine and a model that answer requests.

    Args:
        model: `CausalLM`.
        num_rows: integer. The most answers that are written at once.
        max_length: integer. The most tokens of a prompt and its answer.
    """

    def __init__(self, model: CausalLM, num_rows: int, max_length: int) -> None:
        self._model = model
        self._num_rows = num_rows
        self._engine = ServingEngine(
            model, name="model", max_batch_size=num_rows, max_length=max_length
        )

    def serve(self, requests: list[TextRequest], way: str = "rows") -> Answers:
        """Answers the requests in rows that go on by themselves, or by `generate` in batches."""
        if way == "generate":
            return self._generate(requests)
        answers = Answers(requests)
        asyncio.run(self._ask_all(requests, answers))
        return answers

    async def _ask_all(self, requests: list[TextRequest], answers: Answers) -> None:
        tasks: list[asyncio.Task[None]] = []
        for number, request in enumerate(requests):
            while answers.clock() < request.arrival:
                if all(task.done() for task in tasks):
                    answers.clock.jump(request.arrival)
                else:
                    await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            tasks.append(asyncio.create_task(self._ask(number, request, answers)))
        await asyncio.gather(*tasks)

    async def _ask(self, number: int, request: TextRequest, answers: Answers) -> None:
        answer = self._engine.text(
            request.prompt, max_tokens=request.num_tokens, temperature=0, ignore_eos=True
        )
        async for _ in answer:  # A piece a token.
            answers.add(number, [0])
        answers.tokens[number] = list((await answer.wait()).choices[0].token_ids)

    def _generate(self, requests: list[TextRequest]) -> Answers:
        answers = Answers(requests)
        for start in range(0, len(requests), self._num_rows):
            batch = requests[start : start + self._num_rows]
            num_tokens = [request.num_tokens for request in batch]
            stream = self._model.stream(
                [request.prompt for request in batch],
                max_new_tokens=max(num_tokens),
                stop_token_ids=None,
            )
            for tokens in stream:
                now = answers.clock()
                for row, token in enumerate(tokens):
                    if len(answers.tokens[start + row]) < num_tokens[row]:
                        answers.add(start + row, [token], now)
        return answers


def main() -> None:
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_tokenizer(folder, config["vocab_size"])
    model = CausalLM.from_preset(folder)
    ours = Ours(model, *map(int, sys.argv[2:]))
    answer_questions(ours.serve, config["vocab_size"])


if __name__ == "__main__":
    main()
