import inspect
import socket
import threading

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError, Signature, TensorSpec
from keras_deepseek.inference import (
    HttpLimits,
    ModelOptions,
    ServingEngine,
)
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.models import model_repository


def make_model():
    inputs = keras.Input((3,), name="x")
    return keras.Model(inputs, keras.layers.Dense(2, name="scores")(inputs))


def test_the_mission_s_own_call_answers_as_the_model_does():
    model = make_model()
    x = np.random.default_rng(0).normal(size=(70, 3)).astype("float32")
    with ServingEngine(model=model, batch_size="dynamic", max_batch_size=32) as engine:
        served = engine.predict(x)
    np.testing.assert_allclose(served, model.predict(x, verbose=0), atol=1e-5)


def test_starting_runs_each_batch_size_twice_for_its_time_and_looks_at_a_row_among_others(doubler):
    with ServingEngine(doubler, max_batch_size=6) as engine:
        assert doubler.sizes == [1, 1, 2, 2, 4, 4, 6, 6, *(6, 6, 6, 6, 6, 1)]
        statistics = engine.statistics()
        assert statistics.overhead + statistics.per_row > 0


def test_a_fixed_batch_size_is_the_only_one_that_the_model_sees(doubler):
    with ServingEngine(doubler, batch_size=3, max_batch_size=6) as engine:
        engine.predict(np.zeros((4, 2)))
    assert set(doubler.sizes) == {3}


def test_where_an_axis_is_free_a_row_is_looked_at_and_nothing_where_it_is_not_wanted(doubler):
    with ServingEngine(doubler, warm_up=False):
        assert doubler.sizes == []
    doubler.signature = Signature(
        (TensorSpec("x", (None, None), "float32"),), doubler.signature.outputs
    )
    with ServingEngine(doubler) as engine:
        assert doubler.sizes == [32, 32, 32, 32, 32, 1]
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


def test_what_comes_from_a_path_is_loaded_for_each_replica(bundle_of):
    pytest.importorskip("onnxruntime")
    with ServingEngine(bundle_of("onnx").path, replicas=2) as engine:
        assert len(set(map(id, engine.find()._executors))) == 2
        assert engine.predict([[1, 2]]).tolist() == [[2, 4]]


def test_closing_with_a_server_does_not_wait_for_ever(doubler, monkeypatch):
    monkeypatch.setattr(model_repository, "LEAST_SECONDS", 0.0)
    engine = ServingEngine(doubler, warm_up=False)
    engine.serve(0, limits=HttpLimits(settle_seconds=0.001, grace_seconds=0.001))
    doubler.hold()
    answer = engine.submit([[1, 1]])
    assert doubler.entered.wait(60)
    engine.close()
    doubler.release()
    with pytest.raises(ClosedError, match="did not end in time"):
        answer.result(60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "dynamc"}, 'must be "dynamic" or an integer'),
        ({"batch_size": 64}, "above max_batch_size=32"),
        ({"max_batch_size": 0}, "`max_batch_size` must be a positive integer"),
        ({"max_queue_rows": 0}, "`max_queue_rows` must be a positive integer"),
        ({"name": "a/b"}, "received 'a/b'"),
        ({"replicas": 0}, "`replicas` must be a positive integer"),
        ({"target_latency": 0}, "`target_latency` must be a number of seconds, above 0"),
        ({"warm_up": "no"}, "`warm_up` must be True or False"),
        ({"log_requests": 3}, "`log_requests` must be a path, received 3"),
        ({"sample": 0.5}, "sample=0.5 without `log_requests`"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(doubler, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        ServingEngine(doubler, **arguments)


def test_each_option_of_a_model_is_an_argument_with_the_same_default():
    parameters = inspect.signature(ServingEngine).parameters
    options = vars(ModelOptions())
    assert {name: parameters[name].default for name in options} == options


def test_a_model_of_one_batch_size_is_refused():
    model = keras.Sequential([keras.Input(batch_shape=(8, 3)), keras.layers.Dense(1)])
    with pytest.raises(NotSupportedError, match="leave the batch size open"):
        ServingEngine(model)


def test_serving_stops_with_the_engine_and_a_failed_start_frees_the_port(doubler):
    pytest.importorskip("uvicorn")
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
    pytest.importorskip("uvicorn")
    pytest.importorskip("grpc")
    with ServingEngine(doubler) as engine:
        http = engine.serve(0, 0)
        assert engine.servers[0] is http
        target = engine.servers[1].target
        with socket.create_server(("127.0.0.1", 0)) as other:
            busy_port, free = other.getsockname()[1], socket.create_server(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            with pytest.raises(InvalidInputError, match=f"on port {busy_port}"):
                engine.serve(port, busy_port)
        assert len(engine.servers) == 2
    again = ServingEngine(doubler)
    assert again.serve(http.port, int(target.rpartition(":")[2])).ready
    assert all(server.ready for server in again.servers)
    again.close()
    assert not any(server.ready for server in again.servers)


def test_a_file_that_can_t_be_written_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(InvalidInputError, match="Can't write requests"):
        ServingEngine("missing.keras", log_requests=tmp_path)
    with pytest.raises(InvalidInputError, match="does not exist"):
        ServingEngine("missing.keras", log_requests=tmp_path / "requests")
