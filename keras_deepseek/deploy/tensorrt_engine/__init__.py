"""What a TensorRT engine takes: who builds it, for which GPUs and sizes, and how it is run."""
