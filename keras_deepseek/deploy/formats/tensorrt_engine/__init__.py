"""Steps of building a TensorRT engine: library, GPUs, input sizes and unsupported nodes."""
