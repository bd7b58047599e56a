"""Open Inference's metadata of servers and models, for REST and gRPC."""

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.json_text import load_json
from keras_deepseek.inference.protocols.tensor_bytes import dtype_of

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
"""The protocol extensions that each server supports."""


@dataclass(frozen=True)
class ModelState:
    """The state of one version of a model, as an entry of the repository index.

    `reason` is the reason why it is not ready.
    """

    name: str
    version: str
    is_ready: bool
    reason: str = ""

    @property
    def state(self) -> str:
        """The state in Open Inference's words, `"READY"` or `"UNAVAILABLE"`."""
        return "READY" if self.is_ready else "UNAVAILABLE"


def server_metadata(name: str, version: str, *, has_shared_memory: bool = False) -> dict[str, Any]:
    """Returns the response to `GET /v2`."""
    extensions = [*EXTENSIONS, *(("system_shared_memory",) if has_shared_memory else ())]
    return {"name": name, "version": version, "extensions": extensions}


def model_metadata(
    name: str, signature: Signature, versions: Sequence[str], platform: str
) -> dict[str, Any]:
    """Returns the response to `GET /v2/models/NAME`.

    `platform` is the runtime of the model, as in `"onnxruntime_onnx"`.
    """
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform,
        "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
    }


def parse_repository_index(body: bytes) -> bool:
    """Returns true if a `POST /v2/repository/index` asks only for models that are ready."""
    content = load_json(body) if body.strip() else {}
    ready = content.get("ready", False) if isinstance(content, dict) else None
    if not isinstance(ready, bool):
        raise InvalidInputError(
            "Expected a JSON object, in which 'ready' may be true or false; received "
            f"{reprlib.repr(content)}."
        )
    return ready


def repository_index(states: Iterable[ModelState], ready: bool = False) -> list[dict[str, Any]]:
    """Returns the response to `POST /v2/repository/index`; `ready` leaves out unready models."""
    return [
        {"name": state.name, "version": state.version, "state": state.state, "reason": state.reason}
        for state in states
        if state.is_ready or not ready
    ]


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": dtype_of(spec.dtype).open_inference,
        "shape": [-1 if size is None else size for size in spec.shape],
    }
