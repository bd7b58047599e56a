"""The compiled training step: loss, gradients and update."""
