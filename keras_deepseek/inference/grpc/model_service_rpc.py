"""TF Serving's ModelService: the state of models, and the configuration of all models."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_deepseek.inference.grpc.answers import StatusError
from keras_deepseek.inference.grpc.tf_serving_rpc import check_named, find, version_of
from keras_deepseek.inference.models.model_version import FailedVersion, ModelVersion
from keras_deepseek.inference.models.served_model import find_states, version_status
from keras_deepseek.inference.protocols import tf_serving, tf_serving_model_service
from keras_deepseek.inference.protocols.tf_serving_grpc import ModelSpec

if TYPE_CHECKING:
    from keras_deepseek.inference.grpc.grpc_server import GrpcServer


async def status(server: "GrpcServer", data: bytes, _timeout: float | None) -> bytes:
    """Answers a `GetModelStatusRequest` for one version of a model or for all."""
    model = tf_serving_model_service.parse_status(data)
    check_named(model)
    statuses = [version_status(version, server.ready) for version in _versions(server, model)]
    return tf_serving_model_service.format_status(statuses)


async def reload_config(server: "GrpcServer", data: bytes, _timeout: float | None) -> bytes:
    """Replaces the models by those of a `ReloadConfigRequest`; answers when they are served."""
    models = tf_serving_model_service.parse_reload(data)
    server.check_ready(server.engine.name)
    await asyncio.to_thread(server.engine.repository.replace_models, models)
    return tf_serving_model_service.format_reload()


UNARY_CALLS = {"GetModelStatus": status, "HandleReloadConfigRequest": reload_config}


def _versions(server: "GrpcServer", model: ModelSpec) -> Sequence[ModelVersion | FailedVersion]:
    if model.label:
        return [find(server, model)]
    version = version_of(model)
    states = find_states(server.engine.models.get(model.name), version)
    if not states:
        raise StatusError("NOT_FOUND", tf_serving.no_version_message(model.name, version))
    return states
