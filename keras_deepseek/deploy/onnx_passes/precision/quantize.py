"""Static int8 quantization of products and convolutions, calibrated on the user's data.

Weights and activations are rounded symmetrically about zero, as TensorRT requires, between
QuantizeLinear and DequantizeLinear nodes. Other operators stay in float32: with them, the products
of an attention lose more than they gain.

Weights have 7 bits. A processor without VNNI adds pairs of products in 16 bits, which 8-bit weights
overflow, and an artifact verified on one processor must be right on others.
"""

from collections.abc import Sequence
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.deploy.onnx_passes.import_package import import_package

_OPERATORS = ["Conv", "MatMul", "Gemm"]
_IS_SIMPLIFIED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Metadata without which onnxruntime advises to simplify the graph first."""


def quantize(model: Any, batches: Sequence[dict[str, Array]]) -> Any:
    """Returns a float32 graph with int8 products, calibrated on the user's batches."""
    onnx = import_package("onnx")
    quantization = import_package("onnxruntime.quantization")
    remaining = iter(batches)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, Array] | None:
            return next(remaining, None)

    with temporary_folder("keras_deepseek_int8") as folder:
        source_path, quantized_path = folder / "given.onnx", folder / "made.onnx"
        marked = onnx.ModelProto()
        marked.CopyFrom(model)
        marked.metadata_props.add(key=_IS_SIMPLIFIED[0], value=_IS_SIMPLIFIED[1])
        onnx.save(marked, source_path)
        quantization.quantize_static(
            source_path,
            quantized_path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )
        quantized = onnx.load(quantized_path)
    for index, entry in reversed(list(enumerate(quantized.metadata_props))):
        if entry.key == _IS_SIMPLIFIED[0]:
            del quantized.metadata_props[index]
    return quantized
