"""What a TensorRT engine is built of: the library, the GPUs and sizes, the nodes that it takes."""
