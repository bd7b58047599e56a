"""TensorRT: an engine built from the verified ONNX of the same model.

The engine is built with TensorRT-RTX, which needs no GPU to build one and a GPU to run one.
"""

from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.errors import ExportError, MissingExtraError
from keras_deepseek.artifacts.signature import Signature, TensorSpec

Profile = tuple[int, int, int]
"""Smallest, usual and largest size of a free axis."""

_BATCH: Profile = (1, 4, 32)
_LENGTH: Profile = (1, 16, 64)


class TensorRTFormat:
    """Builds a TensorRT-RTX engine in the ONNX file's own precision.

    Free axes are bounded, as TensorRT asks: the batch from 1 to 32, any other from 1 to 64.
    """

    name = "tensorrt"
    suffix = ".trt"
    entry = "model.trt"

    def __init__(self) -> None:
        try:
            import tensorrt_rtx
        except ImportError as error:
            raise MissingExtraError(
                "tensorrt_rtx", "tensorrt-rtx", "to build a TensorRT engine"
            ) from error
        self._tensorrt = tensorrt_rtx

    def build(self, onnx_file: Path, signature: Signature, folder: Path) -> str:
        """Builds the engine.

        Args:
            onnx_file: A verified ONNX file of the model.
            signature: The model's signature.
            folder: Where `model.trt` goes.

        Returns:
            How it was made.

        Raises:
            ExportError: TensorRT can't take the model; the message names the nodes.
        """
        tensorrt = self._tensorrt
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        network = builder.create_network(
            1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(onnx_file)):
            raise ExportError(f"TensorRT can't take this model: {_parser_errors(parser)}")
        config = builder.create_builder_config()
        config.add_optimization_profile(_profile(builder, signature))
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise ExportError("TensorRT parsed the model and built no engine from it.")
        (folder / self.entry).write_bytes(bytes(engine))
        return f"TensorRT-RTX {tensorrt.__version__}"


def _parser_errors(parser: Any) -> str:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "; ".join(f"{error.node_name() or 'the graph'}: {error.desc()}" for error in errors)


def _profile(builder: Any, signature: Signature) -> Any:
    profile = builder.create_optimization_profile()
    for spec in signature.inputs:
        profile.set_shape(spec.name, *_bounds(spec))
    return profile


def _bounds(spec: TensorSpec) -> list[tuple[int, ...]]:
    """Returns the smallest, usual and largest shape of an input."""
    return [
        tuple(
            size if size is not None else (_BATCH if axis == 0 else _LENGTH)[bound]
            for axis, size in enumerate(spec.shape)
        )
        for bound in range(3)
    ]
