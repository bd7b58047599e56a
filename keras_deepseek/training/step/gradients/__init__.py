"""The gradients of a batch: in one pass, by gradient accumulation, or over replicas."""
