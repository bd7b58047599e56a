import asyncio
import contextlib
import gc
import itertools
import random
import time
import weakref

import numpy as np
import pytest

from keras_deepseek.errors import InvalidFieldError, InvalidInputError
from keras_deepseek.inference.errors import (
    ClosedError,
    DeadlineExceededError,
    OverloadedError,
    RequestCancelledError,
    TextFailedError,
)
from keras_deepseek.inference.text.text_engine import TextEngine
from keras_deepseek.text.sampling import SamplingOptions
from tests.oracles.fake_row_model import (
    END_TOKEN,
    ByteTokenizer,
    FakeRowModel,
    answer_alone,
    start_engine,
)

GREEDY = SamplingOptions(temperature=0, max_tokens=12)


def options(**settings):
    return SamplingOptions(**{"temperature": 0, "max_tokens": 12, **settings})


@contextlib.contextmanager
def open_engine(model=None, *, shapes=((4, 64), (4, 256)), **settings):
    model = model or FakeRowModel()
    engine = start_engine(model, shapes=shapes, **settings)
    try:
        yield engine, model
    finally:
        model.release()
        assert engine.close(60)


def says(text):
    """Returns a model that answers each prompt by a text."""
    tokens = [*text.encode(), END_TOKEN]
    return FakeRowModel(lambda prompt, answer, uniform: tokens[len(answer)])


def test_mixed_requests_get_the_answers_that_they_get_alone():
    lengths = random.Random(0)
    prompts = [lengths.randbytes(lengths.randint(1, 200)) for _ in range(60)]
    with open_engine() as (engine, _):
        answers = [engine.submit(list(prompt), options(max_tokens=40)) for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens = answer_alone(prompt, 40)
            result = answer.result(60)
            choice = result.choices[0]
            assert list(choice.token_ids) == tokens
            assert choice.text == bytes(tokens).decode().rstrip("\0")
            assert choice.finish_reason == ("stop" if tokens[-1] == END_TOKEN else "length")
            assert result.num_prompt_tokens == len(prompt)
            assert result.num_tokens == len(tokens)
        statistics = engine.statistics()
    assert sum(statistics.outcomes.values()) == 60
    assert statistics.num_tokens == sum(len(answer_alone(prompt, 40)) for prompt in prompts)
    assert statistics.num_prompt_tokens == sum(map(len, prompts))
    assert statistics.first_token.count == statistics.request.count == 60
    assert statistics.between_tokens.count == statistics.num_tokens - 60
    assert statistics.num_waiting == statistics.num_reading == statistics.num_running == 0


def test_the_pieces_of_a_text_come_one_by_one_in_a_thread_and_in_an_event_loop():
    async def collect(engine):
        answers = [await engine.submit_async("Hello", GREEDY) for _ in range(3)]

        async def read(answer):
            return [piece async for piece in answer]

        return await asyncio.gather(*map(read, answers))

    with open_engine(says("How do you do?")) as (engine, _):
        pieces = list(engine.submit("Hello", GREEDY))
        assert [pieces] * 3 == asyncio.run(collect(engine))
    assert [piece.text for piece in pieces] == list("How do you d")
    assert [piece.finish_reason for piece in pieces] == [None] * 11 + ["length"]


def test_a_character_comes_whole_and_a_stop_string_never():
    with open_engine(says("größe STOP later")) as (engine, model):
        pieces = list(engine.submit("a", options(max_tokens=40, stop=["STOP", "xx"])))
        assert [piece.text for piece in pieces][:6] == ["g", "r", "", "ö", "", "ß"]
        assert "".join(piece.text for piece in pieces) == "größe "
        assert pieces[-1].finish_reason == "stop"
        result = engine.submit("a", options(max_tokens=8, stop=["e STOP"])).result(60)
        assert (result.text, result.choices[0].finish_reason) == ("größe ", "length")
    # The row is free before the next step.
    assert model.num_steps == len("größe STOP".encode()) - 1 + 7


def test_the_end_token_is_no_text_and_can_be_ignored():
    with open_engine(says("Hi")) as (engine, model):
        result = engine.submit("a", GREEDY).result(60)
        assert (result.text, result.choices[0].token_ids) == ("Hi", (72, 105, END_TOKEN))
        model.choose = lambda prompt, answer, uniform: [72, END_TOKEN][len(answer) % 2]
        assert engine.submit("a", options(ignore_eos=True)).result(60).text == "H" * 6
        answer = engine.submit("a", options(ignore_eos=True), keeps_special_tokens=True)
        assert answer.result(60).text == "H<end>" * 6


def test_random_numbers_depend_on_the_seed_and_the_choice_alone():
    prompts = [b"a" * (length + 1) for length in range(9)]
    with open_engine() as (engine, _):

        def ask(seed, n=1):
            settings = options(temperature=1.0, seed=seed, n=n)
            answers = [engine.submit(list(prompt), settings) for prompt in prompts]
            return [[c.token_ids for c in answer.result(60).choices] for answer in answers]

        first, again, other = ask(7, n=3), ask(7, n=2), ask(-8)
        unseeded = ask(None), ask(None)
    for prompt, tokens in zip(prompts, first, strict=True):
        for choice in range(3):
            uniforms = iter(np.random.default_rng([7, choice]).random, None)
            assert list(tokens[choice]) == answer_alone(prompt, 12, uniforms)
    assert [tokens[:2] for tokens in first] == again
    assert [tokens[:1] for tokens in first] != other
    assert unseeded[0] != unseeded[1]


def test_log_probabilities_come_with_each_token_and_for_the_prompt():
    with open_engine(says("ab")) as (engine, _):
        settings = options(logprobs=2, n=2)
        prompt = bytes(range(50, 90))
        answer = engine.submit(list(prompt), settings, has_echo=True)
        pieces = [piece for piece in answer if piece.choice == 0]
        assert [piece.tokens[0].text for piece in pieces] == ["a", "b", "<end>"]
        detail = pieces[0].tokens[0]
        assert detail.log_probability == pytest.approx(-0.97)
        assert [(other.text, other.token_id) for other in detail.alternatives] == [
            ("a", 97),
            ("b", 98),
        ]
        assert detail.alternatives[0].log_probability == detail.log_probability
        assert [detail.token_id for detail in answer.prompt_details] == list(prompt)
        assert answer.prompt_details[0].log_probability is None
        for detail in answer.prompt_details[1:]:
            assert detail.log_probability == pytest.approx(-detail.token_id / 100)
            assert len(detail.alternatives) == 2
        assert answer.result().choices[1].tokens == tuple(piece.tokens[0] for piece in pieces)
        assert engine.submit("a", GREEDY).result(60).choices[0].tokens == ()


@pytest.mark.parametrize(
    ("field", "prompt", "settings"),
    [
        ("prompt", "", {}),
        ("prompt", [], {}),
        ("prompt", "x" * 256, {}),
        ("prompt", range(10**9), {}),
        ("prompt", [5, 256], {}),
        ("prompt", [5, -1], {}),
        ("prompt", [5, 2**40], {}),
        ("prompt", [5.0], {}),
        ("prompt", [["a"]], {}),
        ("prompt", b"bytes", {}),
        ("prompt", None, {}),
        ("prompt", "half of a pair: \ud83d", {}),
        ("max_tokens", "x" * 250, {"max_tokens": 10}),
        ("max_tokens", "a", {"max_tokens": 0}),
        ("stop_token_ids", "a", {"stop_token_ids": [256]}),
        ("logit_bias", "a", {"logit_bias": {"256": 1}}),
        ("n", "a", {"n": 100}),
    ],
)
def test_a_wrong_request_is_refused_with_the_name_of_the_field(field, prompt, settings):
    with open_engine(max_waiting=20) as (engine, model):
        with pytest.raises(InvalidFieldError) as error:
            engine.submit(prompt, options(**settings))
        assert error.value.field == field
        assert not model.num_steps
        assert engine.submit("a", GREEDY).result(60)


def test_a_text_that_cannot_fit_is_not_tokenized():
    with open_engine() as (engine, _):
        with pytest.raises(InvalidFieldError, match="at least 4000000 tokens"):
            engine.submit("text" * 1_000_000)
        with pytest.raises(InvalidFieldError, match="at least 512 tokens"):
            engine.submit("ö" * 256)
        assert not engine.tokenizer.num_tokenized
        engine.tokenizer.most_bytes_per_token = None
        with pytest.raises(InvalidFieldError, match="4000 tokens"):
            engine.submit("text" * 1000)
        with pytest.raises(InvalidFieldError, match="prompt has 40000 tokens"):
            asyncio.run(engine.submit_async("text" * 10_000))


def test_a_prompt_alone_is_scored_without_a_token_or_a_row():
    with open_engine() as (engine, model):
        model.failures["place"] = AssertionError("It needs no row.")
        answers = [
            engine.submit("x" * 40, options(max_tokens=0, **settings), has_echo=True)
            for settings in ({"logprobs": 0, "n": 2}, {"logprobs": 0}, {})
        ]
        scores = [len(answer.result(60).prompt_details) for answer in answers]
        assert scores == [40, 40, 0]
        assert list(answers[1]) == [(0, "", (), "length")]
        model.is_bad = lambda prompt: True
        with pytest.raises(TextFailedError, match="not finite"):
            engine.submit("a", options(max_tokens=0), has_echo=True).result(60)
        statistics = engine.statistics()
    assert (statistics.num_tokens, statistics.num_prompt_tokens) == (0, 4 * 40 + 1)
    assert statistics.first_token.count == 0
    assert statistics.outcomes == {"length": 4, "failed": 1}


def test_the_cache_cannot_be_longer_than_the_sequences_of_the_model():
    model = FakeRowModel()
    model.max_length = 100
    with pytest.raises(InvalidInputError, match="at most 100 tokens"):
        TextEngine(model, ByteTokenizer(), shapes=[(4, 128)], chunk_size=16, end_tokens=[END_TOKEN])


def test_leaving_a_loop_cancels_the_request():
    async def leave(engine):
        async with contextlib.aclosing(aiter(engine.submit("a", long))) as pieces:
            async for _ in pieces:
                break
        async with engine.submit("a", long):
            pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.submit("a", long).wait(), 0.001)
        await engine.submit("a", long).aclose()

    long = options(max_tokens=200)
    with open_engine(FakeRowModel(lambda prompt, answer, uniform: 65)) as (engine, model):
        model.hold("decode", 2)
        for _ in engine.submit("a", long):
            break
        model.release()
        model.hold("read")
        with engine.submit("a", long) as answer:
            pass
        with pytest.raises(RequestCancelledError):
            answer.result()
        model.release()
        model.hold("decode", 2)
        asyncio.run(leave(engine))
        model.release()
        assert engine.statistics().outcomes == {"cancelled": 6}
        assert engine.statistics().num_running == 0


def test_no_piece_comes_after_a_cancel():
    model = FakeRowModel()
    with open_engine(model) as (engine, _):
        model.hold("decode", 3)
        answer = engine.submit("a", options(ignore_eos=True))
        pieces = iter(answer)
        next(pieces)
        assert model.is_held.wait(60)
        answer.cancel()
        model.release()
        with pytest.raises(RequestCancelledError):
            next(pieces)
        engine.submit("b", GREEDY).result(60)
        with pytest.raises(RequestCancelledError):
            answer.result()


@pytest.mark.parametrize("name", ["decode", "place", "resize"])
def test_a_step_that_fails_ends_the_requests_of_the_rows_and_others_go_on(name, caplog):
    with open_engine() as (engine, model):
        model.hold("decode", 3)
        first = engine.submit("a", options(max_tokens=50, ignore_eos=True))
        assert model.is_held.wait(60)
        others = [engine.submit("b" * 100, options(max_tokens=3)) for _ in range(3)]
        model.failures[name] = RuntimeError("out of memory")
        model.release()
        with pytest.raises(TextFailedError, match="see the log"):
            first.result(60)
        results = []
        for answer in others:
            with contextlib.suppress(TextFailedError):
                results.append(list(answer.result(60).choices[0].token_ids))
        assert all(tokens == answer_alone(b"b" * 100, 3) for tokens in results)
        assert engine.submit("c", GREEDY).result(60).choices[0].token_ids == tuple(
            answer_alone(b"c", 12)
        )
    assert "out of memory" in caplog.text


def test_a_chunk_that_fails_ends_its_request_alone(caplog):
    with open_engine() as (engine, model):
        model.hold()
        answer = engine.submit("a", options(max_tokens=50, ignore_eos=True))
        model.failures["read"] = RuntimeError("no")
        other = engine.submit("b", GREEDY)
        model.release()
        with pytest.raises(TextFailedError):
            answer.result(60)
        assert other.result(60)


def test_a_cache_that_cannot_be_made_fails_the_requests_and_the_next_one_tries_again(caplog):
    with open_engine() as (engine, model):
        model.failures["decode"] = RuntimeError("no")
        model.failures["make"] = RuntimeError("no memory")
        with pytest.raises(TextFailedError):
            engine.submit("a", GREEDY).result(60)
        model.hold()
        later = [engine.submit("b", GREEDY) for _ in range(9)]
        model.release()
        for answer in later:
            with contextlib.suppress(TextFailedError):
                answer.result(60)
        assert not model.failures
        assert engine.submit("c", GREEDY).result(60)


@pytest.mark.parametrize("length", [1, 40])
def test_a_row_whose_logits_are_not_finite_fails_alone(length):
    with open_engine() as (engine, model):
        model.is_bad = lambda prompt: prompt[0] == ord("x")
        answers = [engine.submit(name * length, GREEDY) for name in "axb"]
        assert [answers[0].result(60).num_tokens, answers[2].result(60).num_tokens] == [
            len(answer_alone(name * length, 12)) for name in (b"a", b"b")
        ]
        with pytest.raises(TextFailedError, match="not finite"):
            answers[1].result(60)


def test_a_row_that_becomes_not_finite_fails_alone():
    with open_engine(FakeRowModel(lambda prompt, answer, uniform: 65)) as (engine, model):
        model.hold("decode", 9)
        answers = [engine.submit(name, options(max_tokens=60)) for name in "axb"]
        assert model.is_held.wait(60)
        model.is_bad = lambda prompt: prompt[0] == ord("x")
        model.release()
        with pytest.raises(TextFailedError, match="not finite"):
            answers[1].result(60)
        assert answers[0].result(60).num_tokens == answers[2].result(60).num_tokens == 60


def test_a_choice_that_fails_ends_the_others_of_its_answer():
    with open_engine() as (engine, model):
        model.failures["read"] = RuntimeError("no")
        with pytest.raises(TextFailedError):
            engine.submit("a", options(n=3)).result(60)
        assert engine.submit("a", GREEDY).result(60)
        outcomes = engine.statistics().outcomes
        assert (outcomes["failed"], outcomes["cancelled"]) == (1, 2)


def test_a_request_without_a_first_token_by_its_deadline_fails():
    with open_engine(shapes=[(1, 64)]) as (engine, model):
        model.hold()
        first = engine.submit("a", options(max_tokens=40, ignore_eos=True))
        assert model.is_held.wait(60)
        late = engine.submit("b", GREEDY, timeout=0.5)
        model.release()
        with pytest.raises(DeadlineExceededError):
            late.result(60)
        assert first.result(60).num_tokens == 40
        with pytest.raises(InvalidInputError, match="timeout"):
            engine.submit("b", GREEDY, timeout=-1)


def test_a_deadline_passes_while_the_model_hangs():
    with open_engine(clock=time.monotonic) as (engine, model):
        model.hold()
        first = engine.submit("a", GREEDY, timeout=0.01)
        assert model.is_held.wait(60)
        others = [engine.submit("b", GREEDY, timeout=0.01), engine.submit("c", GREEDY)]
        for answer in (first, others[0]):
            with pytest.raises(DeadlineExceededError):
                answer.result(60)
        model.release()
        assert others[1].result(60)


def test_too_many_requests_are_refused():
    with open_engine(shapes=[(1, 64)], max_waiting=4) as (engine, model):
        model.hold()
        answers = [engine.submit("a", GREEDY) for _ in range(2)]
        while engine.statistics().num_waiting < 2:
            answers.append(engine.submit("a", GREEDY))
        with pytest.raises(OverloadedError):
            engine.submit("a", GREEDY)
        model.release()
        for answer in answers:
            assert answer.result(60)
        assert engine.statistics().outcomes["refused"] == 1


def test_closing_answers_what_was_accepted_or_fails_it_after_its_time():
    with open_engine() as (engine, _):
        answer = engine.submit("a", GREEDY)
        assert engine.close()
        assert answer.result(0)
        with pytest.raises(ClosedError):
            engine.submit("a", GREEDY)
        with pytest.raises(ClosedError):
            asyncio.run(engine.submit_async("text" * 10_000))
    with open_engine() as (engine, model):
        model.hold()
        answers = [engine.submit("a", GREEDY) for _ in range(9)]
        assert model.is_held.wait(60)
        assert not engine.close(0.01)
        for answer in answers:
            with pytest.raises(ClosedError):
                answer.result(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_request_waits_for_a_thread_that_has_ended(monkeypatch):
    def fail(now):
        raise RuntimeError("no")

    with open_engine() as (engine, _):
        monkeypatch.setattr(engine._loop._scheduler, "next_work", fail)
        with pytest.raises(ClosedError):
            engine.submit("a", GREEDY).result(60)
        with pytest.raises(ClosedError):
            engine.submit("a", GREEDY)


def test_an_engine_that_was_not_started_can_be_closed():
    engine = TextEngine(
        FakeRowModel(), ByteTokenizer(), shapes=[(1, 64)], chunk_size=16, end_tokens=[END_TOKEN]
    )
    answer = engine.submit("a", GREEDY)
    assert engine.close(0)
    with pytest.raises(ClosedError):
        answer.result(0)


def test_a_result_can_be_waited_for_with_a_timeout():
    with open_engine() as (engine, model):
        model.hold()
        answer = engine.submit("a", GREEDY)
        with pytest.raises(TimeoutError):
            answer.result(0.001)
        model.release()
        assert answer.result(60) == answer.result(60)
        assert len(list(answer)) == len(answer.result().choices[0].token_ids)


def test_the_end_of_an_answer_can_be_listened_to():
    results = []

    def listen(answer):
        try:
            results.append(answer.result(0).num_tokens)
        except RequestCancelledError:
            results.append("cancelled")

    with open_engine() as (engine, model):
        model.hold()
        answers = [engine.submit("a", options(n=2, ignore_eos=True)) for _ in range(2)]
        for answer in answers:
            answer.add_done_callback(listen)
        answers[0].cancel()
        assert results == ["cancelled"]
        model.release()
        answers[1].result(60)
        answers[1].add_done_callback(listen)
    assert results == ["cancelled", 24, 24]


def test_an_event_loop_is_woken_once_a_step(monkeypatch):
    async def read_all(engine, model):
        loop = asyncio.get_running_loop()
        call, calls = loop.call_soon_threadsafe, itertools.count()
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *args: (next(calls), call(*args))[1]
        )
        model.hold()
        answers = [engine.submit("a", options(max_tokens=30)) for _ in range(4)]
        model.release()
        await asyncio.gather(*(answer.wait() for answer in answers))
        return next(calls)

    with open_engine(FakeRowModel(lambda prompt, answer, uniform: 65)) as (engine, model):
        assert asyncio.run(read_all(engine, model)) <= 4


def test_errors_of_steps_keep_no_tensors(caplog):
    class Tensor:
        pass

    tensors = []

    def choose(prompt, answer, uniform):
        tensor = Tensor()
        tensors.append(weakref.ref(tensor))
        raise RuntimeError("no")

    with open_engine(FakeRowModel(choose)) as (engine, _):
        answer = engine.submit("a", GREEDY)
        with pytest.raises(TextFailedError):
            answer.result(60)
        caplog.clear()
    gc.collect()
    assert [tensor() for tensor in tensors] == [None]
