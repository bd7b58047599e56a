"""gRPC in one environment with what pins protobuf, too: `tox -e companions` has it."""

import numpy as np
import pytest

from keras_deepseek.inference import GrpcServer, ServingEngine
from tests.inference.conftest import service_of


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # The warnings of the packages are their own.
def test_health_and_triton_s_client_work_beside_tensorflow_and_keras_hub(doubler):
    for name in ("tensorflow", "keras_hub"):
        pytest.importorskip(name, reason="tox -e companions has it.")
    triton = pytest.importorskip("tritonclient.grpc", reason="tox -e companions has it.")
    grpc = pytest.importorskip("grpc")
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    stubs = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    with ServingEngine(doubler, name="double") as engine:
        server = GrpcServer(service_of(engine, grpc_port=0))
        server.start()
        with grpc.insecure_channel(server.target) as channel:
            answer = stubs.HealthStub(channel).Check(health.HealthCheckRequest(), timeout=60)
        assert answer.status == health.HealthCheckResponse.SERVING
        client = triton.InferenceServerClient(server.target)
        tensor = triton.InferInput("x", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 2]], "float32"))
        np.testing.assert_array_equal(client.infer("double", [tensor]).as_numpy("y"), [[2, 4]])
        client.close()
        server.stop()
