import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError, Signature, TensorSpec
from keras_deepseek.inference import (
    HttpLimits,
    OverloadedError,
    ServingEngine,
)
from keras_deepseek.inference.errors import ClosedError, DeadlineExceededError
from keras_deepseek.inference.models import model_host
from keras_deepseek.inference.server.termination import Interruption
from tests.inference.conftest import Doubler


def make_model():
    inputs = keras.Input((3,), name="x")
    return keras.Model(inputs, keras.layers.Dense(2, name="scores")(inputs))


def test_the_mission_s_own_call_answers_as_the_model_does():
    model = make_model()
    x = np.random.default_rng(0).normal(size=(70, 3)).astype("float32")
    with ServingEngine(model=model, batch_size="dynamic", max_batch_size=32) as engine:
        served = engine.predict(x)
    np.testing.assert_allclose(served, model.predict(x, verbose=0), atol=1e-5)


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
    left, right = keras.Input((1,), name="left"), keras.Input((1,), name="right")
    model = keras.Model([left, right], {"sum": left + right, "both": left * right})
    with ServingEngine(model, max_batch_size=2) as engine:
        for x in ([[[3]], [[4]]], {"left": [[3]], "right": [[4]]}):
            outputs = engine.predict(x)
            assert (outputs["sum"].tolist(), outputs["both"].tolist()) == ([[7]], [[12]])


def test_any_number_of_rows_is_answered(doubler):
    with ServingEngine(doubler, max_batch_size=4) as engine:
        for count in (0, 1, 3, 4, 11):
            x = np.arange(2 * count, dtype="float32").reshape(count, 2)
            np.testing.assert_array_equal(engine.predict(x), 2 * x)


def test_starting_runs_each_batch_size_and_once_more_to_see_how_long_it_takes(doubler):
    with ServingEngine(doubler, max_batch_size=6) as engine:
        assert doubler.sizes == [1, 1, 2, 2, 4, 4, 6, 6]
        assert engine.statistics().overhead > 0


def test_a_fixed_batch_size_is_the_only_one_that_the_model_sees(doubler):
    with ServingEngine(doubler, batch_size=3, max_batch_size=6) as engine:
        engine.predict(np.zeros((4, 2)))
    assert set(doubler.sizes) == {3}


def test_nothing_is_warmed_up_where_an_axis_is_free_or_it_is_not_wanted(doubler):
    with ServingEngine(doubler, warm_up=False):
        assert doubler.sizes == []
    doubler.signature = Signature(
        (TensorSpec("x", (None, None), "float32"),), doubler.signature.outputs
    )
    with ServingEngine(doubler) as engine:
        assert doubler.sizes == []
        assert engine.predict([[1, 2, 3]]).tolist() == [[2, 4, 6]]


def test_the_first_use_starts_the_engine_once(doubler):
    engine = ServingEngine(doubler, max_batch_size=1)
    assert not engine.ready
    engine.predict([[1, 2]])
    assert engine.ready
    engine.start()
    assert doubler.sizes == [1, 1, 1]
    engine.close()


def test_a_closed_engine_refuses(doubler):
    engine = ServingEngine(doubler)
    engine.close()
    engine.close()
    assert not engine.ready
    for call in (engine.start, engine.serve, lambda: engine.predict([[1, 2]])):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_submitting_needs_a_started_engine(doubler):
    with pytest.raises(ClosedError, match="call `start` first"):
        ServingEngine(doubler).submit([[1, 2]])


def test_closing_answers_what_was_accepted(doubler):
    engine = ServingEngine(doubler, warm_up=False)
    engine.start()
    doubler.hold()
    futures = [engine.submit([[value, value]]) for value in range(3)]
    assert doubler.entered.wait(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    doubler.release()
    closing.join()
    assert [future.result()["y"][0, 0] for future in futures] == [0, 2, 4]


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


def test_what_comes_from_a_path_is_loaded_for_each_replica(bundle_of):
    pytest.importorskip("onnxruntime")
    with ServingEngine(bundle_of("onnx").path, replicas=2) as engine:
        assert len(set(map(id, engine.find()._executors))) == 2
        assert engine.predict([[1, 2]]).tolist() == [[2, 4]]


def test_too_many_waiting_rows_are_refused(doubler):
    with ServingEngine(doubler, warm_up=False, max_queue_rows=2) as engine:
        doubler.hold()
        engine.submit([[1, 1]])
        assert doubler.entered.wait(60)
        engine.submit([[1, 1], [2, 2]])
        with pytest.raises(OverloadedError):
            engine.predict([[1, 1]])
        doubler.release()


def test_closing_with_a_server_does_not_wait_for_ever(doubler, monkeypatch):
    monkeypatch.setattr(model_host, "LEAST_SECONDS", 0.0)
    engine = ServingEngine(doubler, warm_up=False)
    engine.serve(0, limits=HttpLimits(settle_seconds=0.001, grace_seconds=0.001))
    doubler.hold()
    answer = engine.submit([[1, 1]])
    assert doubler.entered.wait(60)
    engine.close()
    doubler.release()
    with pytest.raises(ClosedError, match="did not end in time"):
        answer.result(60)


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
    ("arguments", "message"),
    [
        ({"batch_size": "dynamc"}, "did you mean 'dynamic'"),
        ({"batch_size": 64}, "above max_batch_size=32"),
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"max_queue_rows": 0}, "max_queue_rows=0"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"replicas": 0}, "replicas=0"),
        ({"target_latency": 0}, "target_latency=0"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(doubler, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        ServingEngine(doubler, **arguments)


def test_a_model_of_one_batch_size_is_refused():
    model = keras.Sequential([keras.Input(batch_shape=(8, 3)), keras.layers.Dense(1)])
    with pytest.raises(NotSupportedError, match="leave the batch size open"):
        ServingEngine(model)


def test_serving_stops_with_the_engine_and_a_failed_start_frees_the_port(doubler):
    pytest.importorskip("httptools")
    with ServingEngine(doubler) as engine:
        server = engine.serve(0)
        assert engine.serve(0).port != server.port
    assert not server.ready

    doubler.run = lambda inputs: 1 / 0
    broken = ServingEngine(doubler)
    with pytest.raises(ZeroDivisionError):
        broken.serve(server.port)
    with ServingEngine(doubler, warm_up=False) as engine:
        assert engine.serve(server.port).port == server.port


def test_both_ports_are_taken_or_none_and_closing_frees_both(doubler):
    pytest.importorskip("httptools")
    pytest.importorskip("grpc")
    with ServingEngine(doubler) as engine:
        http = engine.serve(0, 0)
        assert engine.servers[0] is http
        target = engine.servers[1].target
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken, free = other.getsockname()[1], socket.create_server(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            with pytest.raises(InvalidInputError, match=f"on port {taken}"):
                engine.serve(port, taken)
        assert len(engine.servers) == 2
    again = ServingEngine(doubler)
    assert again.serve(http.port, int(target.rpartition(":")[2])).ready
    assert all(server.ready for server in again.servers)
    again.close()
    assert not any(server.ready for server in again.servers)


def test_a_blocking_server_returns_when_the_engine_closes(doubler, monkeypatch):
    pytest.importorskip("httptools")
    waits, wait = threading.Event(), Interruption.wait
    monkeypatch.setattr(Interruption, "wait", lambda self, event: (waits.set(), wait(self, event)))
    engine = ServingEngine(doubler)
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(engine.serve, 0, block=True)
        assert waits.wait(60)
        assert not served.done()
        engine.close()
        assert not served.result(timeout=60).ready


def test_ctrl_c_ends_a_blocking_server(doubler, monkeypatch):
    pytest.importorskip("httptools")

    def interrupted_wait(_self, _event):
        raise KeyboardInterrupt

    monkeypatch.setattr(Interruption, "wait", interrupted_wait)
    with ServingEngine(doubler) as engine:
        assert not engine.serve(0, block=True).ready
        assert engine.ready


SERVES = """
import sys
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.server.termination import Interruption
from tests.inference.conftest import Doubler

class Told(Doubler):
    def run(self, inputs):
        print("runs", flush=True)
        sys.stdin.readline()
        return super().run(inputs)

engine, wait = ServingEngine(Told(), warm_up=False), Interruption.wait
Interruption.wait = lambda *here: (print(engine.servers[0].port, flush=True), wait(*here))
engine.serve(0, block=True)
print("over")
"""


def is_open(host, port):
    try:
        socket.create_connection((host, port)).close()
    except ConnectionError:  # It may have been let in by the kernel alone, and is reset.
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_blocking_server_when_it_has_answered(number):
    pytest.importorskip("httptools")
    pipe = subprocess.PIPE
    call = [sys.executable, "-c", SERVES]
    folder = Path(__file__).parents[2]
    with subprocess.Popen(call, cwd=folder, stdin=pipe, stdout=pipe, text=True) as child:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", int(child.stdout.readline()))
            connection.request("POST", "/v1/models/model:predict", '{"instances": [[1, 2]]}')
            assert child.stdout.readline() == "runs\n"
            child.send_signal(number)
            while is_open(connection.host, connection.port):
                pass
            print(file=child.stdin, flush=True)
            assert json.load(connection.getresponse()) == {"predictions": [[2.0, 4.0]]}
            connection.close()
            rest, _ = child.communicate(timeout=60)
        finally:
            child.kill()
    assert rest.splitlines()[-1] == "over"
    assert child.returncode == 0


def test_grpc_is_not_left_open_beside_tls(doubler):
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with ServingEngine(doubler) as engine:
        with pytest.raises(InvalidInputError, match="for both ports or for none"):
            engine.serve(0, 0, ssl_context=context)
        assert not engine.servers


def test_limits_are_those_of_both_servers(doubler):
    pytest.importorskip("grpc")
    limits = HttpLimits(settle_seconds=0.01, grace_seconds=5)
    with ServingEngine(doubler, warm_up=False) as engine:
        engine.serve(0, 0, max_body_bytes=1000, limits=limits)
        http, grpc = engine.servers
    assert (http.limits, http.max_body_bytes) == (limits, 1000)
    assert (grpc.settle_seconds, grpc.grace_seconds, grpc.max_message_bytes) == (0.01, 5, 1000)


def test_a_file_that_can_t_be_written_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(InvalidInputError, match="Can't write requests"):
        ServingEngine("missing.keras", log_requests=tmp_path)
    with pytest.raises(InvalidInputError, match="does not exist"):
        ServingEngine("missing.keras", log_requests=tmp_path / "requests")
