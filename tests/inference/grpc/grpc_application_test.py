import asyncio
import gc
import json
import logging
import queue
import random
import subprocess
import sys
import weakref

import numpy as np
import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.grpc import open_inference_rpc
from keras_deepseek.inference.monitoring.access_log import LOGGER
from keras_deepseek.inference.protocols.grpc_messages import (
    message_pool,
    new_message,
    parse_message,
)
from tests.inference.conftest import MANAGED, MANAGER, Doubler
from tests.oracles.protocols import import_client, read_descriptors, skip_without

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")

ROWS = np.array([[1, 2], [3, 4]], "float32")
METHODS = [
    f"{file.package}.{service.name}/{method.name}"
    for file in read_descriptors().file
    for service in file.service
    for method in service.method
    if file.package != "grpc.health.v1"  # The official package answers these.
]


@pytest.fixture
def client(doubler, serve_grpc):
    with ServingEngine(doubler) as engine:
        yield serve_grpc(engine, **MANAGED)


def send(client, path, data, method):
    """Sends one message; returns the status, and the first answer."""
    try:
        return "OK", _send(client, path, data, method)
    except grpc.RpcError as error:
        return error.code().name, b""


def _send(client, path, data, method):
    if method.server_streaming:
        kind = "stream_stream" if method.client_streaming else "unary_stream"
        call = getattr(client.channel, kind)(f"/{path}")
        stream = call(iter([data]) if method.client_streaming else data, timeout=60)
        first = next(stream)
        stream.cancel()
        return first
    return client.channel.unary_unary(f"/{path}")(data, timeout=60, metadata=MANAGER)


@pytest.mark.parametrize("path", METHODS)
def test_bytes_that_are_no_message_are_a_bad_input_of_every_method(client, path, caplog):
    source = random.Random(path)
    service, _, name = path.partition("/")
    method = message_pool().FindServiceByName(service).methods_by_name[name]
    refused = 0
    for _ in range(60):
        data = source.randbytes(source.randrange(1, 60))
        try:
            parse_message(method.input_type.full_name, data)
        except ValueError:
            is_message = False
        else:
            is_message = True  # Its fields are unknown ones, which any message may have.
        status, first = send(client, path, data, method)
        if path.endswith("ModelStreamInfer"):  # The stream goes on.
            message = parse_message("inference.ModelStreamInferResponse", first)
            assert message.error_message
            refused += 1
        else:
            assert status == "INVALID_ARGUMENT" or is_message
            refused += not is_message
    assert refused > 30
    assert caplog.records == []
    assert client.ask("grpc.health.v1.Health/Check").status == 1


def test_a_fault_of_the_server_itself_is_internal_and_not_shown(
    client, status_of, monkeypatch, caplog
):
    monkeypatch.setattr(open_inference_rpc, "write_message", lambda _name, live: live / 0)
    code_and_text = status_of(client.ask, "inference.GRPCInferenceService/ServerLive")
    assert code_and_text == ("INTERNAL", "The server failed; see its log.")
    assert "ZeroDivisionError" in caplog.text


def test_a_failed_call_keeps_no_inputs_for_the_garbage_collector(serve_grpc, caplog):
    class Noting(Doubler):
        def run(self, inputs):
            references.append(weakref.ref(inputs["x"]))
            return super().run(inputs)

    caplog.set_level(logging.CRITICAL, "keras_deepseek")  # Records of the log have the tracebacks.
    references = []
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [-1, 0]}}
    with ServingEngine(Noting(), warm_up=False) as engine:
        client = serve_grpc(engine)
        gc.disable()
        try:
            for _ in range(3):
                with pytest.raises(grpc.RpcError):
                    client.ask(
                        "inference.GRPCInferenceService/ModelInfer", model_name="model", inputs=[x]
                    )
            client.ask("inference.GRPCInferenceService/ServerLive")
            assert [reference() is None for reference in references] == [True] * 3
        finally:
            gc.enable()


@pytest.fixture
def target(doubler, serve_grpc):
    with ServingEngine(doubler, name="double") as engine:
        yield serve_grpc(engine, **MANAGED).server.target


def test_tensorflow_serving_api(target, quiet):
    grpc_stubs = import_client("tensorflow_serving.apis.prediction_service_pb2_grpc")
    model_stubs = import_client("tensorflow_serving.apis.model_service_pb2_grpc")
    import tensorflow as tf
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_management_pb2,
        predict_pb2,
    )

    with grpc.insecure_channel(target) as channel:
        stub = grpc_stubs.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "double"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(ROWS))
        answer = stub.Predict(request, timeout=60)
        assert (tf.make_ndarray(answer.outputs["y"]) == 2 * ROWS).all()
        assert answer.model_spec.signature_name == "serving_default"
        request = classification_pb2.ClassificationRequest()
        request.model_spec.name = "double"
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.extend([1, 2])
        classes = stub.Classify(request, timeout=60).result.classifications[0].classes
        assert [label.score for label in classes] == [2, 4]
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "double"
        packed = stub.GetModelMetadata(request, timeout=60).metadata["signature_def"]
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert packed.Unpack(signatures)
        assert signatures.signature_def["serving_default"].inputs["x"].dtype == tf.float32
        models = model_stubs.ModelServiceStub(channel)
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "double"
        status = models.GetModelStatus(request, timeout=60).model_version_status[0]
        assert (status.version, status.state) == (1, status.AVAILABLE)
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.config.add(name="other", base_path="nowhere")
        with pytest.raises(grpc.RpcError) as caught:
            models.HandleReloadConfigRequest(request, timeout=60, metadata=MANAGER)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def triton_inputs(client):
    tensor = client.InferInput("x", ROWS.shape, "FP32")
    tensor.set_data_from_numpy(ROWS)
    return [tensor]


def test_tritonclient(target, quiet):
    client = import_client("tritonclient.grpc")
    with client.InferenceServerClient(target) as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("double", "1")
        assert triton.get_server_metadata().name == "keras_deepseek"
        assert triton.get_model_metadata("double").inputs[0].shape == [-1, 2]
        assert triton.get_model_repository_index().models[0].state == "READY"
        result = triton.infer("double", triton_inputs(client), request_id="7")
        assert (result.as_numpy("y") == 2 * ROWS).all()
        assert result.get_response().id == "7"
        answers = queue.Queue()
        triton.async_infer(
            "double", triton_inputs(client), lambda result, error: answers.put((result, error))
        )
        later, error = answers.get(timeout=60)
        assert error is None
        assert (later.as_numpy("y") == 2 * ROWS).all()
        with pytest.raises(client.InferenceServerException, match="no model 'other'") as caught:
            triton.infer("other", triton_inputs(client))
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        triton.load_model("double", headers=dict(MANAGER))
        triton.unload_model("double", headers=dict(MANAGER))
        assert not triton.get_model_repository_index().models


def test_tritonclient_s_stream(target, quiet):
    client = import_client("tritonclient.grpc")
    answers = queue.Queue()
    with client.InferenceServerClient(target) as triton:
        triton.start_stream(lambda result, error: answers.put((result, error)))
        for name in ("double", "other", "double"):
            triton.async_stream_infer(name, triton_inputs(client))
        results = [answers.get(timeout=60) for _ in range(3)]
        triton.stop_stream()
    assert (results[0][0].as_numpy("y") == 2 * ROWS).all()
    assert "no model 'other'" in str(results[1][1])
    assert (results[2][0].as_numpy("y") == 2 * ROWS).all()


def test_tritonclient_s_aio(target, quiet):
    client = import_client("tritonclient.grpc.aio")

    async def ask():
        async with client.InferenceServerClient(target) as triton:
            assert await triton.is_model_ready("double")
            results = await asyncio.gather(
                *(triton.infer("double", triton_inputs(client)) for _ in range(20))
            )

            async def requests():
                for number in range(3):
                    yield {
                        "model_name": "double",
                        "inputs": triton_inputs(client),
                        "request_id": str(number),
                    }

            streamed = [response async for response in triton.stream_infer(requests())]
            return results, streamed

    results, streamed = asyncio.run(ask())
    assert all((result.as_numpy("y") == 2 * ROWS).all() for result in results)
    assert [response[0].get_response().id for response in streamed] == ["0", "1", "2"]
    assert all(response[1] is None for response in streamed)


KSERVE = """
import asyncio, sys
import numpy as np
import kserve

async def ask():
    rows = np.array([[1, 2], [3, 4]], "float32")
    async with kserve.InferenceGRPCClient(sys.argv[1]) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("double")
        tensor = kserve.InferInput("x", [2, 2], "FP32")
        tensor.set_data_from_numpy(rows)
        answer = await client.infer(kserve.InferRequest("double", [tensor]))
        assert (answer.outputs[0].as_numpy() == 2 * rows).all()

asyncio.run(ask())
print("answered")
"""


def test_kserve(target):
    skip_without("kserve")
    # Its messages have the names of Triton's: one process holds one of the two.
    call = [sys.executable, "-c", KSERVE, target]
    process = subprocess.run(call, capture_output=True, text=True, check=False)
    assert process.stdout.strip().endswith("answered"), process.stderr


def test_ovmsclient(target, quiet):
    ovmsclient = import_client("ovmsclient")
    client = ovmsclient.make_grpc_client(target)
    assert (client.predict({"x": ROWS}, "double") == 2 * ROWS).all()
    assert client.get_model_status("double")[1]["state"] == "AVAILABLE"
    metadata = client.get_model_metadata("double")
    assert metadata["inputs"]["x"]["shape"] == [-1, 2]
    errors = import_client("ovmsclient.tfs_compat.base.errors")
    with pytest.raises(errors.ModelNotFoundError, match=r"Latest\(other\)"):
        client.predict({"x": ROWS}, "other")


def test_calls_without_a_token_are_refused_but_those_for_health(doubler, serve_grpc):
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine, tokens=["secret"])
        assert client.ask("grpc.health.v1.Health/Check").status == 1
        live = client.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        for metadata in ((), (("authorization", "Bearer other"),), (("authorization", "secret"),)):
            with pytest.raises(grpc.RpcError) as refusal:
                live(b"", metadata=metadata, timeout=60)
            assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as refusal:
                next(stream(iter([b""]), metadata=metadata, timeout=60))
            assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert live(b"", metadata=(("authorization", "Bearer secret"),), timeout=60)


def test_models_are_loaded_and_unloaded_only_for_a_management_token(doubler, serve_grpc, status_of):
    unload = "inference.GRPCInferenceService/RepositoryModelUnload"
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine, tokens=["secret"])
        client.metadata = (("authorization", "Bearer secret"),)
        code, text = status_of(client.ask, unload, model_name="model")
        assert (code, "--model-control explicit" in text) == ("PERMISSION_DENIED", True)
        client = serve_grpc(engine, tokens=["secret"], **MANAGED)
        for metadata in ((), (("authorization", "Bearer secret"),), 2 * MANAGER):
            client.metadata = metadata
            code, text = status_of(client.ask, unload, model_name="model")
            assert (code, "management token" in text) == ("PERMISSION_DENIED", True)
        client.metadata = MANAGER
        live = status_of(client.ask, "inference.GRPCInferenceService/ServerLive")
        assert live[0] == "UNAUTHENTICATED"
        assert client.ask(unload, model_name="model").isUnloaded


def test_calls_are_counted_by_model_and_status(doubler, serve_grpc):
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    with ServingEngine(doubler, name="double") as engine:
        client = serve_grpc(engine)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
        contents = {"contents": {"fp32_contents": [1, 2]}}
        path = "inference.GRPCInferenceService/ModelInfer"
        client.ask(path, model_name="double", inputs=[{**tensor, **contents}])
        with pytest.raises(grpc.RpcError):
            client.ask(path, model_name="made-up")
        client.ask("inference.GRPCInferenceService/ModelMetadata", name="double")
        status, model = "tensorflow.serving.ModelService/GetModelStatus", {"name": "double"}
        client.ask(status, model_spec=model)
        with pytest.raises(grpc.RpcError):
            client.ask(status, model_spec={**model, "version_label": "new"})
        client.close()
        client.server.stop()  # What was answered is counted by then.
        assert engine.monitor.answers() == {
            (("double", "1", "open_inference_grpc", "ModelInfer"), "OK"): 1,
            (("", "", "open_inference_grpc", "ModelInfer"), "NOT_FOUND"): 1,
            (("double", "", "open_inference_grpc", "ModelMetadata"), "OK"): 1,
            (("double", "", "tf_serving_grpc", "GetModelStatus"), "OK"): 1,
            (("double", "", "tf_serving_grpc", "GetModelStatus"), "INVALID_ARGUMENT"): 1,
        }


INFER = "inference.GRPCInferenceService/ModelInfer"


def infer_message(value, name="double", **fields):
    message = new_message("inference.ModelInferRequest", model_name=name, **fields)
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([value, value])
    return message.SerializeToString()


@pytest.fixture
def lines(caplog):
    """Returns the lines of the access log that there are."""
    logging.getLogger(LOGGER).setLevel(logging.NOTSET)
    yield lambda: [json.loads(record.message) for record in caplog.records if record.name == LOGGER]
    logging.getLogger(LOGGER).setLevel(logging.NOTSET)


def test_the_log_says_which_call_met_a_failing_model(doubler, serve_grpc, caplog):
    with ServingEngine(doubler, name="double") as engine:
        client = serve_grpc(engine, access_log=True)
        infer = client.channel.unary_unary(f"/{INFER}")
        with pytest.raises(grpc.RpcError, match="The model failed with ArithmeticError"):
            infer(infer_message(-1), metadata=(("x-request-id", "mine-1"),), timeout=60)
    assert "The model 'double' failed. Request: mine-1." in caplog.text


def test_calls_are_logged_where_that_is_asked_for(doubler, serve_grpc, lines):
    with ServingEngine(doubler, name="double") as engine:
        client = serve_grpc(engine, access_log=True)
        infer = client.channel.unary_unary(f"/{INFER}")
        metadata = (("x-request-id", "mine-1"),)
        answer, call = infer.with_call(infer_message(1), metadata=metadata, timeout=60)
        assert ("x-request-id", "mine-1") in call.trailing_metadata()
        with pytest.raises(grpc.RpcError) as caught:
            infer(infer_message(1, "other"), timeout=60)
        ((_, other),) = caught.value.trailing_metadata()
        client.close()
        client.server.stop()  # What was answered is logged by then.
        first, second = lines()
    assert first["milliseconds"] >= first["queue_milliseconds"] + first["model_milliseconds"] > 0
    expected = {
        "protocol": "open_inference_grpc",
        "method": "POST",
        "path": f"/{INFER}",
        "status": "OK",
        "bytes": len(answer),
        "batch_rows": 1,
        "model": "double",
        "version": "1",
        "client": "127.0.0.1",
        "request_id": "mine-1",
    }
    assert {key: first[key] for key in expected} == expected
    assert (second["status"], second["model"], second["batch_rows"]) == ("NOT_FOUND", "", None)
    assert (second["request_id"], len(other)) == (other, 32)


def test_an_id_does_not_take_the_place_of_when_to_try_again(doubler, serve_grpc):
    with ServingEngine(doubler, name="double", max_queue_rows=1, warm_up=False) as engine:
        client = serve_grpc(engine, access_log=True)
        doubler.hold()
        running = engine.submit([[1, 1]])
        assert doubler.entered.wait(60)
        waiting = engine.submit([[1, 1]])
        with pytest.raises(grpc.RpcError) as caught:
            client.channel.unary_unary(f"/{INFER}")(infer_message(1), timeout=60)
        doubler.release()
        assert [len(future.result()["y"]) for future in (running, waiting)] == [1, 1]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    names = {name for name, _ in caught.value.trailing_metadata()}
    assert names == {"x-request-id", "grpc-retry-pushback-ms"}


def test_a_stream_without_a_token_counts_as_one_request(doubler, serve_grpc, lines):
    with ServingEngine(doubler, name="double") as engine:
        client = serve_grpc(engine, tokens=["secret"], access_log=True)
        stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as caught:
            next(stream(iter([infer_message(1)]), timeout=60))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        client.close()
        client.server.stop()
        called = ("", "", "open_inference_grpc", "ModelStreamInfer")
        assert engine.monitor.answers() == {(called, "UNAUTHENTICATED"): 1}
        (line,) = lines()
    assert line["status"] == "UNAUTHENTICATED"
    assert (("x-request-id", line["request_id"]),) == caught.value.trailing_metadata()


def test_names_that_clients_make_up_are_no_labels(doubler, serve_grpc):
    with ServingEngine(doubler, name="double") as engine:
        client = serve_grpc(engine)
        for number in range(50):
            for fields in ({"name": f"made-up-{number}"}, {"model_version": f"{number + 2}"}):
                with pytest.raises(grpc.RpcError):
                    client.channel.unary_unary(f"/{INFER}")(infer_message(1, **fields), timeout=60)
        client.close()
        client.server.stop()
        called = ("", "open_inference_grpc", "ModelInfer")
        assert engine.monitor.answers() == {
            ((model, *called), "NOT_FOUND"): 50 for model in ("", "double")
        }


def test_another_file_of_tokens_is_read(doubler, serve_grpc, status_of, tmp_path):
    path = tmp_path / "tokens"
    path.write_text("first")
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine, tokens=path)
        path.write_text("another")
        tokens = client.server.service.tokens
        tokens._clock = lambda: tokens._looked + 1.0
        live = client.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        old = (("authorization", "Bearer first"),)
        assert status_of(live, b"", metadata=old, timeout=60)[0] == "UNAUTHENTICATED"
        assert live(b"", metadata=(("authorization", "Bearer another"),), timeout=60)


def test_a_call_that_its_client_cancels_is_logged(doubler, serve_grpc, lines):
    with ServingEngine(doubler, name="double", warm_up=False) as engine:
        client = serve_grpc(engine, access_log=True)
        doubler.hold()
        call = client.channel.unary_unary(f"/{INFER}").future(infer_message(1), timeout=60)
        assert doubler.entered.wait(60)
        call.cancel()
        client.close()
        client.server.stop()
        doubler.release()
        (line,) = lines()
    assert (line["status"], line["client"], line["bytes"]) == ("CANCELLED", "127.0.0.1", 0)
    assert (line["model"], line["batch_rows"]) == ("double", None)
