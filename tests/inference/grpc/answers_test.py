import asyncio

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import (
    ClosedError,
    DeadlineExceededError,
    ModelNotFoundError,
    OverloadedError,
    ServingEngine,
)
from keras_deepseek.inference.errors import LoadFailedError
from keras_deepseek.inference.grpc.answers import (
    Refusal,
    StatusError,
    dispatch,
    outputs_of,
    refusal_of,
    time_left,
)
from tests.inference.conftest import service_of


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (InvalidInputError("no"), Refusal("INVALID_ARGUMENT", "no")),
        (ModelNotFoundError("no"), Refusal("NOT_FOUND", "no")),
        (ClosedError("no"), Refusal("UNAVAILABLE", "no")),
        (DeadlineExceededError("no"), Refusal("DEADLINE_EXCEEDED", "no")),
        (
            OverloadedError("no", 2.5),
            Refusal(
                "RESOURCE_EXHAUSTED",
                "no. Try again in 3 s.",
                (("grpc-retry-pushback-ms", "3000"),),
            ),
        ),
        (
            LoadFailedError("x"),
            Refusal("INTERNAL", "The model 'x' could not be loaded; see the server's log."),
        ),
        (StatusError("ABORTED", "no"), Refusal("ABORTED", "no")),
    ],
)
def test_each_error_has_its_status(error, refusal, caplog):
    assert refusal_of(error) == refusal
    assert caplog.records == []


def test_a_fault_of_the_server_is_logged_and_not_shown(caplog):
    assert refusal_of(KeyError("secret")) == Refusal("INTERNAL", "The server failed; see its log.")
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("time_remaining", "expected"), [(None, None), (9.2e9, None), (0.5, 0.5), (0.0, 0.0)]
)
def test_no_deadline_is_told_as_none_however_grpc_tells_it(time_remaining, expected):
    class Context:
        def time_remaining(self):
            return time_remaining

    assert time_left(Context()) == expected


def test_outputs_come_and_what_the_model_raises_is_not_shown(doubler, rows, caplog):
    async def ask(value):
        future, version = dispatch(service, "model", lambda _: rows(value))
        assert version is service.engine.find()
        return await outputs_of("model", future, None)

    with ServingEngine(doubler) as engine:
        service = service_of(engine)
        assert asyncio.run(ask(1))["y"].tolist() == [[2, 2]]
        with pytest.raises(StatusError, match="The model failed with ArithmeticError") as caught:
            asyncio.run(ask(-1))
    assert caught.value.status == "INTERNAL"
    assert "a row starts with -1" in caplog.text


def test_a_deadline_that_has_passed_and_a_server_that_is_not_ready_are_refused(doubler, rows):
    service = service_of(ServingEngine(doubler))
    with pytest.raises(ClosedError, match="not ready"):
        dispatch(service, "model", lambda _: rows(1))
    service.engine.start()
    with pytest.raises(DeadlineExceededError, match="before it was read"):
        dispatch(service, "model", lambda _: rows(1), timeout=0.0)
    service.engine.close()


def test_what_the_engine_refuses_is_raised_as_it_is():
    async def ask(error):
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        await outputs_of("model", future, None)

    refused = (InvalidInputError, ClosedError, OverloadedError, DeadlineExceededError)
    for error in [kind("no") for kind in refused]:
        with pytest.raises(type(error)):
            asyncio.run(ask(error))
