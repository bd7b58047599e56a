"""Makes a graph multiply and convolve in int8, by ranges that the user's data have.

Weights and activations are rounded symmetrically about zero, as TensorRT asks, and QuantizeLinear
and DequantizeLinear nodes say where. Other operators stay in float32: with them the products of an
attention lose more than they gain.

Weights have 7 bits: a processor without VNNI adds pairs of products in 16 bits, which of 8 bits
overflow, and what was verified on one processor is to be right on others.
"""

from collections.abc import Sequence
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.deploy.onnx_passes.import_package import import_package

_OPERATORS = ["Conv", "MatMul", "Gemm"]
_IS_SIMPLIFIED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""The mark of a graph that onnxruntime does not advise to simplify first, as this one is."""


def quantize(model: Any, batches: Sequence[dict[str, Array]]) -> Any:
    """Returns a graph that computes products in int8.

    Args:
        model: `onnx.ModelProto` in float32.
        batches: For each batch of the user's data its arrays by input name.

    Returns:
        `onnx.ModelProto`.
    """
    onnx = import_package("onnx")
    quantization = import_package("onnxruntime.quantization")
    remaining = iter(batches)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, Array] | None:
            return next(remaining, None)

    with temporary_folder("keras_deepseek_int8") as folder:
        given, made = folder / "given.onnx", folder / "made.onnx"
        marked = onnx.ModelProto()
        marked.CopyFrom(model)
        marked.metadata_props.add(key=_IS_SIMPLIFIED[0], value=_IS_SIMPLIFIED[1])
        onnx.save(marked, given)
        quantization.quantize_static(
            given,
            made,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )
        quantized = onnx.load(made)
    for index, entry in reversed(list(enumerate(quantized.metadata_props))):
        if entry.key == _IS_SIMPLIFIED[0]:
            del quantized.metadata_props[index]
    return quantized
