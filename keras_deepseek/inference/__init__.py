"""Serving: single requests in batches, in-process, over HTTP and over gRPC.

The way of a request, as a guide to the code:

1. `http` and `grpc` listen: uvicorn reads a request by `http_protocol`, `grpc_application` gets it
   from grpcio. `server` has the code of both: their options, threads and event loops, TLS, tokens,
   signals. A handler gets a `Service`: an engine with its options, notes and permissions.
2. `http_application` finds the route in the table of routes, for example in `tf_serving_rest`. The
   gRPC methods are in `tf_serving_rpc` and others. `protocols`, pure functions, decode the bytes.
3. `dispatcher` takes it from there, and from `ServingEngine.predict`: it asks `models` for the
   version. `model_repository` has the models by name, `served_model` the versions of one,
   `model_version` its executors, its cache and its batcher.
4. `batching`: the request waits in `batch_queue` until its `batching_policy` lets a batch leave.
   A thread of `batcher` runs it, and `delivery` returns each request its rows: to a waiting
   thread, or in one turn of an event loop.
5. `executors` compute: a live Keras model, or a bundle in its own runtime, here or in another
   process. `open_executor` finds them by the format of a bundle.
   A language model has no executor and no batcher: `text_version` has a `text.TextEngine`, whose
   loop reads prompts and writes all answers together, and `openai` has the forms of its requests.
6. The second half of the route encodes the outputs, or `errors` gives the status. Then `monitoring`
   counts the request, and logs and traces it if that is turned on.

`engine` puts all of this together, and `model_download` downloads a model that is named by a URI.
`command` is `keras-deepseek serve`. Its flags are those of `models/model_options` and
`server/server_options`. The contracts in pyproject.toml say who may import whom. Importing this
package loads no NumPy, so that the command line can read these options.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from keras_deepseek.inference.http.http_server import HttpServer
    from keras_deepseek.inference.model_download import fetch_model
    from keras_deepseek.inference.models.model_config import read_model_config
    from keras_deepseek.inference.models.model_options import ModelOptions
    from keras_deepseek.inference.server.http_limits import HttpLimits
    from keras_deepseek.inference.server.server_options import ServerOptions
    from keras_deepseek.inference.server.service import Service
    from keras_deepseek.inference.server.tls import make_grpc_credentials, make_server_context

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
    "ServerOptions",
    "Service",
    "ServingEngine",
    "fetch_model",
    "make_grpc_credentials",
    "make_server_context",
    "read_model_config",
]
_MODULES = {
    "Executor": "executors.executor",
    "GrpcServer": "grpc.grpc_server",
    "HttpLimits": "server.http_limits",
    "HttpServer": "http.http_server",
    "ModelOptions": "models.model_options",
    "Padding": "batching.padding",
    "ServerOptions": "server.server_options",
    "Service": "server.service",
    "ServingEngine": "engine",
    "fetch_model": "model_download",
    "make_grpc_credentials": "server.tls",
    "make_server_context": "server.tls",
    "read_model_config": "models.model_config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
