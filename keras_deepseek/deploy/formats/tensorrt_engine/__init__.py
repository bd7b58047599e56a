"""The parts of building a TensorRT engine: library, GPUs, sizes, and unsupported nodes."""
