"""TF Serving's gRPC about models: their metadata, their state, and which ones a server has.

Bytes in, bytes out, as in `tf_serving_grpc`; the same facts over HTTP are in `tf_serving`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.protocols.dtypes import DTYPES
from keras_deepseek.inference.protocols.messages import (
    Message,
    new_message,
    parse_message,
    parse_message_text,
)
from keras_deepseek.inference.protocols.tf_serving import (
    PREDICT_METHOD,
    SIGNATURE_NAME,
    Signatures,
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
    """A model that a server is to have: by a file, or by `HandleReloadConfigRequest`.

    Args:
        name: string. The model's name.
        base_path: string. The folder with its versions.
        policy: string. `"latest"`, `"all"` or `"specific"`. Defaults to `"latest"`.
        num_versions: integer. How many of the latest. Defaults to `1`.
        versions: tuple of integers. The specific ones. Defaults to `()`.
        labels: dict of versions by label. Defaults to none.
    """

    name: str
    base_path: str
    policy: str = "latest"
    num_versions: int = 1
    versions: tuple[int, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)


def parse_metadata(data: bytes) -> ModelSpec:
    """Returns which model a `GetModelMetadataRequest` is about.

    Raises:
        InvalidInputError: It is no such message, or asks for something else than `signature_def`.
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


def format_metadata(model: ModelSpec, signatures: Signatures) -> bytes:
    """Returns the `GetModelMetadataResponse` about a model.

    Args:
        model: `ModelSpec`, with the version that is described.
        signatures: `Signature`, or a mapping of several by name.
    """
    known = {SIGNATURE_NAME: signatures} if isinstance(signatures, Signature) else signatures
    definitions = new_message(_SERVING + "SignatureDefMap")
    for name, signature in known.items():
        definition = definitions.signature_def[name]
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
    """Returns which model a `GetModelStatusRequest` is about.

    Raises:
        InvalidInputError: It is no such message.
    """
    return read_model_spec(parse_message(_SERVING + "GetModelStatusRequest", data).model_spec)


def format_status(versions: Iterable[VersionStatus]) -> bytes:
    """Returns the `GetModelStatusResponse` about versions, the newest first.

    Args:
        versions: iterable of `VersionStatus`.
    """
    message = new_message(_SERVING + "GetModelStatusResponse")
    for version in sorted(versions, key=lambda version: -version.version):
        status = message.model_version_status.add(version=version.version, state=version.state)
        _set_status(status.status, version.error_code, version.error_message)
    return bytes(message.SerializeToString())


def parse_reload(data: bytes) -> tuple[ModelConfig, ...]:
    """Returns the models that a `ReloadConfigRequest` asks for: those and no others.

    Raises:
        InvalidInputError: It is no such message, or has no list of models, or one that is not of
            names that differ, each with a folder.
    """
    return _read_models(parse_message(_SERVING + "ReloadConfigRequest", data).config)


def parse_config_text(text: str) -> tuple[ModelConfig, ...]:
    """Returns the models that a `ModelServerConfig` asks for, in the text of `--model_config_file`.

    Raises:
        InvalidInputError: As from `parse_reload`.

    Example:

    >>> text = 'model_config_list { config { name: "digits" base_path: "/models/digits" } }'
    >>> [(model.name, model.policy) for model in parse_config_text(text)]
    [('digits', 'latest')]
    """
    return _read_models(parse_message_text(_SERVING + "ModelServerConfig", text))


def format_reload(error_code: str = "OK", error_message: str = "") -> bytes:
    """Returns the `ReloadConfigResponse`.

    Args:
        error_code: string. A gRPC status. Defaults to `"OK"`.
        error_message: string. Defaults to `""`.
    """
    message = new_message(_SERVING + "ReloadConfigResponse")
    _set_status(message.status, error_code, error_message)
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
            f"Received models named {names!r:.200}. Expected names that differ, and a base_path "
            "for each."
        )
    return models


def _read_model(model: Message) -> ModelConfig:
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
