"""Serving: batches of single requests, in-process, over HTTP and over gRPC.

How a request goes, and where to read on:

1. `http` and `grpc` listen: `http_connection` reads a request from its socket, `grpc_application`
   takes it from grpcio. `server` has what both share: the thread and its event loop, TLS, tokens,
   the end by a signal.
2. `http_application` finds the route, as one in `tf_serving_rest`; gRPC's are `tf_serving_rpc` and
   the like. `protocols`, pure functions, make arrays of its bytes.
3. `dispatcher` takes it from there, and from `ServingEngine.predict`: it asks `models` for the
   version that the request is for. `model_repository` has the models by name, `served_model` the
   versions of one, `model_version` its executors, its cache and its batcher.
4. `batching`: the request waits in `batch_queue`, until `leave_rule` or `wait_rule` lets a batch
   go; a thread of `batcher` runs it, and hands each request its rows back, to a waiting thread
   (`future_delivery`) or in one turn of an event loop (`loop_delivery`).
5. `executors` compute: a live Keras model, or a bundle in its own runtime, here or isolated.
6. The route's second half makes bytes of the outputs, or `errors` says which status it is;
   `monitoring` then counts the request, and logs and traces it where that is asked for.

`engine` puts all of it together, `command` is `keras-deepseek serve`. pyproject.toml has who may
import whom.
"""

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
from keras_deepseek.inference.server.tls import (
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
    "ReplicaError",
    "ServingEngine",
    "make_grpc_credentials",
    "make_server_context",
    "read_model_config",
]
