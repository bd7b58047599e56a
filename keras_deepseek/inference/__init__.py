"""Serving: batches of single requests, in-process, over HTTP and over gRPC."""

from keras_deepseek.inference.batching.padding import Padding
from keras_deepseek.inference.engine import ServingEngine
from keras_deepseek.inference.errors import (
    ClosedError,
    DeadlineExceededError,
    ModelNotFoundError,
    OverloadedError,
    ReplicaError,
)
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.grpc.grpc_server import GrpcServer
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.http_server import HttpServer
from keras_deepseek.inference.models.config import read_model_config
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.monitoring.replay import ReplayReport, replay_requests
from keras_deepseek.inference.server.server_context import (
    make_grpc_credentials,
    make_server_context,
)

__all__ = [
    "ClosedError",
    "DeadlineExceededError",
    "Executor",
    "GrpcServer",
    "HttpLimits",
    "HttpServer",
    "ModelNotFoundError",
    "ModelOptions",
    "OverloadedError",
    "Padding",
    "ReplayReport",
    "ReplicaError",
    "ServingEngine",
    "make_grpc_credentials",
    "make_server_context",
    "read_model_config",
    "replay_requests",
]
