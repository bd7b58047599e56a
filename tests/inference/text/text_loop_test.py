"""Random clients of the thread that writes answers, in virtual time."""

import asyncio
import contextlib
import random
import threading

import pytest

from keras_deepseek.inference.errors import (
    DeadlineExceededError,
    OverloadedError,
    RequestCancelledError,
    TextFailedError,
)
from keras_deepseek.text.sampling import SamplingOptions
from tests.oracles.fake_row_model import END_TOKEN, FakeRowModel, answer_alone, start_engine

CHUNK_SECONDS, STEP_SECONDS, RESIZE_SECONDS = 0.1, 0.045, 0.005

ERRORS = (RequestCancelledError, DeadlineExceededError, TextFailedError)


@contextlib.contextmanager
def event_loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Clients:
    """Clients that submit, read, hang up, cancel and never read, and the failures of the model."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.model = FakeRowModel(
            chunk_seconds=CHUNK_SECONDS, step_seconds=STEP_SECONDS, resize_seconds=RESIZE_SECONDS
        )
        self.model.is_bad = lambda prompt: prompt[0] == ord("!")
        shapes = [(2, 64), (4, 128), (8, 128)]
        self.engine = start_engine(self.model, shapes=shapes, max_waiting=40)
        self.requests = []
        self.readers = []
        self.cancelled = []

    def submit(self, number, loop):
        draw = self.random
        prompt = f"{'!' if draw.random() < 0.02 else 'p'}{number}{'x' * draw.randrange(90)}"
        sampling = SamplingOptions(
            temperature=0,
            max_tokens=draw.randint(0, 30),
            n=draw.choice([1, 1, 1, 3]),
            stop=draw.choice([(), ("q", "zz")]),
        )
        try:
            answer = self.engine.submit(
                prompt,
                sampling,
                client=draw.choice("abc"),
                priority=draw.choice([0, 0, 0, 1]),
                timeout=draw.choice([None, None, 0.3, 5.0]),
                has_echo=True,
            )
        except OverloadedError:
            for _, answer in self.requests[-20:-5]:
                with contextlib.suppress(*ERRORS):
                    answer.result(60)
            return
        self.requests.append((prompt, answer))
        reader = draw.choice([self.read, self.read, self.hang_up, self.wait, None])
        if reader is not None:
            coroutine = reader(prompt, answer, draw.randint(1, 10))
            self.readers.append(asyncio.run_coroutine_threadsafe(coroutine, loop))

    def cancel(self):
        _, answer = self.random.choice(self.requests[-30:])
        was_over = answer.is_over
        answer.cancel()
        if not was_over:
            self.cancelled.append((answer, answer.num_tokens))

    def fail(self):
        self.model.failures[self.random.choice(["read", "place", "decode", "resize"])] = (
            RuntimeError("no")
        )

    async def read(self, prompt, answer, number):
        texts, reasons = {}, {}
        try:
            async for piece in answer:
                assert piece.choice not in reasons
                texts[piece.choice] = texts.get(piece.choice, "") + piece.text
                if piece.finish_reason:
                    reasons[piece.choice] = piece.finish_reason
            assert len(reasons) == len(answer.requests)
        except ERRORS:
            assert len(reasons) < len(answer.requests)
        for choice, text in texts.items():
            expected, reason = expect(prompt, answer)
            assert expected.startswith(text)
            if choice in reasons:
                assert (text, reasons[choice]) == (expected, reason)

    async def hang_up(self, prompt, answer, number):
        pieces = aiter(answer)
        with contextlib.suppress(*ERRORS):
            async with contextlib.aclosing(pieces):
                async for _ in pieces:
                    number -= 1
                    if not number:
                        break
        assert answer.is_over

    async def wait(self, prompt, answer, number):
        with contextlib.suppress(*ERRORS):
            result = await answer.wait()
            assert {(choice.text, choice.finish_reason) for choice in result.choices} == {
                expect(prompt, answer)
            }

    def check(self):
        for reader in self.readers:
            reader.result(60)
        for prompt, answer in self.requests:
            with contextlib.suppress(*ERRORS):
                assert answer.result(60).text == expect(prompt, answer)[0]
            assert prompt[0] != "!" or not answer.num_tokens
        for answer, num_tokens in self.cancelled:
            assert answer.num_tokens == num_tokens


def expect(prompt, answer):
    """Returns the text of an answer that is alone, and how it ends."""
    sampling = answer.requests[0].sampling
    tokens = answer_alone(prompt.encode(), sampling.max_tokens)
    reason = "stop" if tokens[-1:] == [END_TOKEN] else "length"
    text = bytes(tokens).decode().rstrip("\0")
    for stop in sampling.stop:
        if stop in text:
            text, reason = text[: text.index(stop)], "stop"
    return text, reason


@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_random_requests_end_once_and_leave_nothing(number, caplog):
    clients = Clients(number)
    with event_loop() as loop:
        for index in range(number):
            action = clients.random.random()
            if action < 0.7 or not clients.requests:
                clients.submit(index, loop)
            elif action < 0.99:
                clients.cancel()
            else:
                clients.fail()
        clients.check()
        statistics = clients.engine.statistics()
        assert clients.engine.close(60)
    outcomes = statistics.outcomes
    num_choices = sum(len(answer.requests) for _, answer in clients.requests)
    assert sum(outcomes.values()) - outcomes.get("refused", 0) == num_choices
    assert all(outcomes[kind] for kind in ("stop", "length", "cancelled", "deadline", "failed"))
    assert statistics.num_waiting == statistics.num_reading == statistics.num_running == 0
    assert clients.model.longest_gap <= CHUNK_SECONDS + STEP_SECONDS + RESIZE_SECONDS + 1e-6
    loop = clients.engine._loop
    assert not loop._writers
    assert not loop._prompts
    assert set(loop._scheduler.rows) == {None}
