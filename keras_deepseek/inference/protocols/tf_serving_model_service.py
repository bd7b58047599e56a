"""Requests and responses of TF Serving about models: metadata, status and configuration."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.protocols.grpc_messages import (
    Message,
    new_message,
    parse_message,
    parse_message_text,
)
from keras_deepseek.inference.protocols.tensor_bytes import DTYPES
from keras_deepseek.inference.protocols.tf_serving import (
    PREDICT_METHOD,
    SIGNATURE_NAME,
    VersionStatus,
)
from keras_deepseek.inference.protocols.tf_serving_grpc import (
    ModelSpec,
    read_model_spec,
    write_model_spec,
)

_SERVING = "tensorflow.serving."
_SIGNATURE_DEF = "signature_def"
_TF_NUMBERS = {dtype.name: dtype.tf_number for dtype in DTYPES}


@dataclass(frozen=True)
class ModelConfig:
    """A model that a configuration file or a `HandleReloadConfigRequest` names.

    Args:
        base_path: The folder with its versions.
        policy: `"latest"`, `"all"` or `"specific"`.
        num_versions: The number of versions for `"latest"`.
        versions: The versions for `"specific"`.
    """

    name: str
    base_path: str
    policy: str = "latest"
    num_versions: int = 1
    versions: tuple[int, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)


def parse_metadata(data: bytes) -> ModelSpec:
    """Returns the model that a `GetModelMetadataRequest` names.

    Raises `InvalidInputError` if it asks for other metadata than `signature_def`.
    """
    message = parse_message(_SERVING + "GetModelMetadataRequest", data)
    if not message.metadata_field:
        raise InvalidInputError(
            "GetModelMetadataRequest must specify at least one metadata_field: 'signature_def'."
        )
    for name in message.metadata_field:
        if name != _SIGNATURE_DEF:
            raise InvalidInputError(unknown_name_message("metadata_field", name, [_SIGNATURE_DEF]))
    return read_model_spec(message.model_spec)


def format_metadata(model: ModelSpec, signature: Signature) -> bytes:
    """Returns the `GetModelMetadataResponse` of a model."""
    definitions = new_message(_SERVING + "SignatureDefMap")
    definition = definitions.signature_def[SIGNATURE_NAME]
    definition.method_name = PREDICT_METHOD
    for spec in signature.inputs:
        _describe(definition.inputs[spec.name], spec)
    for spec in signature.outputs:
        _describe(definition.outputs[spec.name], spec)
    message = new_message(_SERVING + "GetModelMetadataResponse", model_spec=write_model_spec(model))
    packed = message.metadata[_SIGNATURE_DEF]
    packed.type_url = f"type.googleapis.com/{_SERVING}SignatureDefMap"
    packed.value = definitions.SerializeToString()
    return bytes(message.SerializeToString())


def parse_status(data: bytes) -> ModelSpec:
    """Returns the model that a `GetModelStatusRequest` names."""
    return read_model_spec(parse_message(_SERVING + "GetModelStatusRequest", data).model_spec)


def format_status(versions: Iterable[VersionStatus]) -> bytes:
    """Returns the `GetModelStatusResponse` of versions, the newest first."""
    message = new_message(_SERVING + "GetModelStatusResponse")
    for version in sorted(versions, key=lambda version: -version.version):
        status = message.model_version_status.add(version=version.version, state=version.state)
        _set_status(status.status, version.error_code, version.error_message)
    return bytes(message.SerializeToString())


def parse_reload(data: bytes) -> tuple[ModelConfig, ...]:
    """Returns all models that the server should have after a `ReloadConfigRequest`."""
    return _read_models(parse_message(_SERVING + "ReloadConfigRequest", data).config)


def parse_config_text(text: str) -> tuple[ModelConfig, ...]:
    """Returns the models in the text of TF Serving's `--model_config_file`."""
    return _read_models(parse_message_text(_SERVING + "ModelServerConfig", text))


def format_reload() -> bytes:
    """Returns the `ReloadConfigResponse` of a change that succeeded."""
    message = new_message(_SERVING + "ReloadConfigResponse")
    _set_status(message.status, "OK", "")
    return bytes(message.SerializeToString())


def _set_status(message: Message, error_code: str, error_message: str) -> None:
    message.SetInParent()
    code = message.DESCRIPTOR.fields_by_name["error_code"].enum_type
    message.error_code = code.values_by_name[error_code].number
    message.error_message = error_message


def _describe(info: Message, spec: TensorSpec) -> None:
    info.name = f"{spec.name}:0"
    info.dtype = _TF_NUMBERS.get(spec.dtype, 0)
    for size in spec.shape:
        info.tensor_shape.dim.add(size=-1 if size is None else size)


def _read_models(config: Message) -> tuple[ModelConfig, ...]:
    if config.WhichOneof("config") != "model_config_list":
        raise InvalidInputError("Expected a ModelServerConfig with a model_config_list.")
    models = tuple(_read_model(model) for model in config.model_config_list.config)
    names = [model.name for model in models]
    if len(set(names)) < len(names) or not all(model.name and model.base_path for model in models):
        raise InvalidInputError(
            f"Received models named {names!r:.200}. Expected unique names, and a base_path for "
            "each."
        )
    return models


def _read_model(model: Message) -> ModelConfig:
    if model.HasField("logging_config"):
        raise InvalidInputError(
            f"The model {model.name!r:.100} has a logging_config, which this server does not "
            "support. Remove it; --log-requests FILE logs a sample of the requests to all models."
        )
    policy = model.model_version_policy
    latest = policy.latest.num_versions or 1
    return ModelConfig(
        model.name,
        model.base_path,
        policy.WhichOneof("policy_choice") or "latest",
        latest,
        tuple(policy.specific.versions),
        dict(model.version_labels),
    )
