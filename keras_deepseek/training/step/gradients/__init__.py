"""The gradients of a batch: in one pass, in micro-batches, or over replicas."""
