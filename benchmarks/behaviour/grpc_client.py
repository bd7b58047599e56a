"""Calls of our server over gRPC: `PORT COUNT` makes so many, and waits to be killed."""

import importlib.util
import sys
import threading
from typing import Any

import numpy as np
from server_processes import NUM_FEATURES, ROW

PREDICT = "/tensorflow.serving.PredictionService/Predict"


def has_grpc() -> bool:
    """Whether gRPC is installed."""
    return importlib.util.find_spec("grpc") is not None


def message_of(first: float = ROW[0], model: str = "model") -> bytes:
    """Returns a request of one row, which begins with a number."""
    from keras_deepseek.inference.protocols.grpc_messages import new_message
    from keras_deepseek.inference.protocols.tensor_proto import to_tensor_proto

    row = np.full((1, NUM_FEATURES), ROW[0], "float32")
    row[0, 0] = first
    message = new_message("tensorflow.serving.PredictRequest")
    message.model_spec.name = model
    message.inputs["x"].CopyFrom(to_tensor_proto(row))
    data: bytes = message.SerializeToString()
    return data


def open_channel(port: int) -> Any:
    """Returns a channel to a server of this machine."""
    import grpc

    return grpc.insecure_channel(f"127.0.0.1:{port}")


def start_calls(channel: Any, count: int, data: bytes) -> list[Any]:
    """Returns calls that are under way."""
    call = channel.unary_unary(PREDICT)
    return [call.future(data, timeout=60) for _ in range(count)]


def status_of(call: Any) -> str:
    """Returns the name of the status of a call when it is over, `"OK"` where it was answered."""
    import grpc

    try:
        call.result()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def is_answered(call: Any) -> bool:
    """Returns when a call is over, whether it was answered."""
    return status_of(call) == "OK"


if __name__ == "__main__":
    with open_channel(int(sys.argv[1])) as open_one:
        under_way = start_calls(open_one, int(sys.argv[2]), message_of())
        print("sent", flush=True)
        threading.Event().wait()
