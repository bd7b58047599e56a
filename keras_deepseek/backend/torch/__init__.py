"""See `keras_deepseek.backend.Backend` for what each of these functions does."""

from keras_deepseek.backend.torch.device import count_devices
from keras_deepseek.backend.torch.export import write_onnx, write_saved_model
from keras_deepseek.backend.torch.gradients import apply_with_gradient, compute_gradients
from keras_deepseek.backend.torch.inference import compile_inference
from keras_deepseek.backend.torch.loops import repeat
from keras_deepseek.backend.torch.tracing import can_read_shapes, read_integer

__all__ = [
    "apply_with_gradient",
    "can_read_shapes",
    "compile_inference",
    "compute_gradients",
    "count_devices",
    "read_integer",
    "repeat",
    "write_onnx",
    "write_saved_model",
]
