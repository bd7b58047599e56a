import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.inference import (
    OverloadedError,
    ServingEngine,
)
from keras_deepseek.inference.errors import ClosedError, DeadlineExceededError
from tests.inference.conftest import Doubler


def make_model():
    inputs = keras.Input((3,), name="x")
    return keras.Model(inputs, keras.layers.Dense(2, name="scores")(inputs))


def test_a_served_batch_is_bit_equal_to_the_executor_called_at_that_size():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    with ServingEngine(make_model(), max_batch_size=4) as engine:
        expected = engine.find()._executors[0].run({"x": x})["scores"]
        np.testing.assert_array_equal(engine.predict(x), expected)


def test_threads_that_ask_for_single_rows_get_their_own_answers():
    model = make_model()
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    with ServingEngine(model) as engine, ThreadPoolExecutor(16) as pool:
        served = np.concatenate(list(pool.map(engine.predict, np.split(x, 64))))
    np.testing.assert_allclose(served, model.predict(x, verbose=0), atol=1e-5)


def test_several_outputs_come_by_name_and_several_inputs_in_any_form():
    first, second = keras.Input((1,), name="left"), keras.Input((1,), name="right")
    model = keras.Model([first, second], {"sum": first + second, "both": first * second})
    with ServingEngine(model, max_batch_size=2) as engine:
        for x in ([[[3]], [[4]]], {"left": [[3]], "right": [[4]]}):
            outputs = engine.predict(x)
            assert (outputs["sum"].tolist(), outputs["both"].tolist()) == ([[7]], [[12]])


def test_any_number_of_rows_is_answered(doubler):
    with ServingEngine(doubler, max_batch_size=4) as engine:
        for count in (0, 1, 3, 4, 11):
            x = np.arange(2 * count, dtype="float32").reshape(count, 2)
            np.testing.assert_array_equal(engine.predict(x), 2 * x)


def test_submitting_needs_a_started_engine(doubler):
    with pytest.raises(ClosedError, match="call `start` first"):
        ServingEngine(doubler).submit([[1, 2]])


def test_predict_async_answers_many_at_once_and_starts_the_engine(doubler):
    engine = ServingEngine(doubler)

    async def main():
        return await asyncio.gather(
            *(engine.predict_async([[value, value]]) for value in range(50))
        )

    answers = asyncio.run(main())
    engine.close()
    assert [answer[0, 0] for answer in answers] == [2 * value for value in range(50)]


def test_a_cancelled_await_takes_the_request_out_of_the_queue(doubler):
    engine = ServingEngine(doubler, warm_up=False)
    engine.start()

    async def main():
        doubler.hold()
        first = asyncio.ensure_future(engine.predict_async([[1, 1]]))
        await asyncio.to_thread(doubler.entered.wait, 60)
        second = engine.submit_async([[2, 2]])
        second.cancel()
        await asyncio.sleep(0)
        doubler.release()
        await first

    asyncio.run(main())
    engine.close()
    assert doubler.rows_seen == [1]


def test_cancelling_a_future_takes_the_request_out_of_the_queue(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        doubler.hold()
        first = engine.submit([[1, 1]])
        assert doubler.entered.wait(60)
        second = engine.submit([[2, 2]])
        assert engine.statistics().waiting_rows == 1
        assert second.cancel()
        assert engine.statistics().waiting_rows == 0
        doubler.release()
        assert first.result()["y"].tolist() == [[2, 2]]
    assert doubler.rows_seen == [1]


def test_a_request_that_is_late_is_told_so_and_not_run(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        doubler.hold()
        first = engine.submit([[1, 1]])
        assert doubler.entered.wait(60)
        with pytest.raises(DeadlineExceededError):
            engine.predict([[2, 2]], timeout=0.02)
        doubler.release()
        first.result()
    assert doubler.rows_seen == [1]


def test_of_those_that_wait_higher_priorities_are_run_first(doubler):
    with ServingEngine(doubler, warm_up=False, max_batch_size=1) as engine:
        doubler.hold()
        futures = [engine.submit([[0, 0]])]
        assert doubler.entered.wait(60)
        futures += [engine.submit([[value, 0]], priority=value) for value in (1, 3, 2)]
        doubler.release()
        wait(futures, timeout=60)
    assert doubler.rows_seen == [0, 3, 2, 1]


def test_a_client_gets_its_answers_in_order_though_replicas_finish_in_another():
    class Slow(Doubler):
        def run(self, inputs):
            if inputs["x"][0, 0] == 0:
                assert others_ran.wait(60)
            elif inputs["x"][0, 0] == 2:
                others_ran.set()
            return super().run(inputs)

    others_ran, order = threading.Event(), []
    with ServingEngine(Slow(), warm_up=False, max_batch_size=1, replicas=2) as engine:
        futures = [engine.submit([[value, 0]], client="a") for value in range(3)]
        for value, future in enumerate(futures):
            future.add_done_callback(lambda _, value=value: order.append(value))
        wait(futures, timeout=60)
    assert order == [0, 1, 2]


def test_cancelling_one_of_a_client_s_requests_lets_the_next_be_answered(doubler):
    async def main(engine):
        doubler.hold()
        first = engine.submit_async([[1, 1]], client="a")
        await asyncio.to_thread(doubler.entered.wait, 60)
        second = engine.submit_async([[2, 2]], client="a")
        first.cancel()
        doubler.release()
        return await second

    with ServingEngine(doubler, warm_up=False) as engine:
        assert asyncio.run(main(engine))["y"].tolist() == [[4, 4]]


def test_a_refused_request_does_not_hold_its_client_s_others_back(doubler):
    with ServingEngine(doubler, warm_up=False, max_queue_rows=1) as engine:
        doubler.hold()
        first = engine.submit([[1, 1]], client="a")
        assert doubler.entered.wait(60)
        second = engine.submit([[2, 2]], client="a")
        with pytest.raises(OverloadedError):
            engine.submit([[3, 3]], client="a")
        doubler.release()
        assert wait([first, second], timeout=60).not_done == set()


def test_too_many_waiting_rows_are_refused(doubler):
    with ServingEngine(doubler, warm_up=False, max_queue_rows=2) as engine:
        doubler.hold()
        engine.submit([[1, 1]])
        assert doubler.entered.wait(60)
        engine.submit([[1, 1], [2, 2]])
        with pytest.raises(OverloadedError):
            engine.predict([[1, 1]])
        doubler.release()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"z": np.ones((1, 2))}, r"gave the outputs \['z'\]; its signature says \['y'\]"),
        ({"y": "text"}, "gave a str as output 'y'"),
    ],
)
def test_outputs_are_those_of_the_signature_after_the_warm_up_too(doubler, outputs, message):
    with ServingEngine(doubler) as engine:
        doubler.run = lambda _inputs: outputs
        with pytest.raises(NotSupportedError, match=message):
            engine.predict([[1, 2]])


def test_an_input_that_does_not_fit_is_refused_before_it_meets_others(doubler):
    with ServingEngine(doubler) as engine, pytest.raises(InvalidInputError, match="expected x"):
        engine.predict([[1, 2, 3]])


def test_an_option_that_is_misspelt_is_refused_by_each_way_in(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        for call in (engine.predict, engine.submit, engine.submit_async):
            with pytest.raises(InvalidInputError, match="did you mean 'timeout'"):
                call([[1, 2]], timout=1e-9)
        with pytest.raises(InvalidInputError, match="did you mean 'priority'"):
            asyncio.run(engine.predict_async([[1, 2]], priorty=1))
        assert engine.statistics().batches == 0


def test_statistics_tell_why_batches_left(doubler):
    with ServingEngine(doubler, max_batch_size=4) as engine:
        engine.predict(np.zeros((5, 2)))
        statistics = engine.statistics()
    assert (statistics.batches, statistics.rows, statistics.padded_rows) == (2, 5, 0)
    assert [decision.reason for decision in statistics.decisions] == ["full", "idle"]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1], [10]], r"received 10 at index \(1, 0\); expected tokens: int32 .* from 0 to 9"),
        ([[-1]], r"received -1 at index \(0, 0\)"),
        ([[]], "whose axis 1 is empty"),
        ({"tokes": [[1]]}, "Did you mean 'tokens' instead of 'tokes'"),
    ],
)
def test_tokens_that_a_model_does_not_know_are_refused_before_they_share_a_batch(x, message):
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    model = keras.Model(tokens, keras.layers.Embedding(10, 2)(tokens))
    with ServingEngine(model, warm_up=False) as engine:
        with pytest.raises(InvalidInputError, match=message):
            engine.submit(x)
        assert engine.predict([[9]]).shape == (1, 1, 2)
        assert engine.statistics().rows == 1


def test_an_input_is_not_read_where_there_is_no_room_for_it(doubler, rows):
    with ServingEngine(doubler, max_batch_size=1, max_queue_rows=1, warm_up=False) as engine:
        doubler.hold()
        answers = [engine.submit(rows(1))]
        assert doubler.entered.wait(60)
        answers.append(engine.submit(rows(2)))
        read = []

        async def ask(**options):
            engine.dispatch(lambda _: read.append(1) or rows(3), print, **options)

        with pytest.raises(OverloadedError, match="The queue is full"):
            asyncio.run(ask())
        assert not read
        with pytest.raises(OverloadedError, match="The queue is full"):
            asyncio.run(ask(timeout=60.0))
        assert read
        doubler.release()
        wait(answers, 60)
