"""Building of a TensorRT engine from an ONNX file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.backend.runtimes.tensorrt_engine.error_log import make_error_log
from keras_deepseek.deploy.formats.tensorrt_engine.blocking_nodes import (
    check_nodes,
    describe_errors,
)
from keras_deepseek.deploy.formats.tensorrt_engine.profiles import Profile
from keras_deepseek.errors import ExportError


def build_engine(
    tensorrt: Any, onnx_file: Path, profiles: Sequence[Profile], capabilities: Sequence[str]
) -> bytes:
    """Builds and serializes a TensorRT engine in the precision of the ONNX file's tensors.

    `tensorrt` is the module of either flavor. Without capabilities the library's default applies.
    """
    log = make_error_log(tensorrt)
    builder = tensorrt.Builder(log)
    # A parser crashes if it outlives its network.
    checked_network = _make_network(tensorrt, builder)
    check_nodes(tensorrt.OnnxParser(checked_network, log), onnx_file)
    network = _make_network(tensorrt, builder)
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        raise ExportError(f"TensorRT can't take this model: {describe_errors(parser)}")
    config = builder.create_builder_config()
    for profile in profiles:
        config.add_optimization_profile(_make_profile(builder, profile))
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            value = getattr(tensorrt.ComputeCapability, f"SM{capability}")
            config.set_compute_capability(value, index)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reasons = "; ".join(log.errors) or "it gives no reason"
        sizes = " and ".join(map(str, profiles))
        raise ExportError(
            f"TensorRT parsed the model but could not build an engine: {reasons}. If the model "
            f"does not take every size from the smallest to the largest ({sizes}), pass profiles=."
        )
    return bytes(engine)


def _make_network(tensorrt: Any, builder: Any) -> Any:
    # Release 10 keeps the file's types only with this flag; 11 and RTX always do.
    strongly_typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder.create_network(strongly_typed)


def _make_profile(builder: Any, profile: Profile) -> Any:
    optimization_profile = builder.create_optimization_profile()
    for name, shapes in profile.shapes.items():
        optimization_profile.set_shape(name, *shapes)
    return optimization_profile
