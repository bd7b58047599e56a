"""The computation of a batch's gradients: directly, by accumulation, or over replicas."""
