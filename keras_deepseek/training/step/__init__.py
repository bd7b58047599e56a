"""The compiled step of a training: loss, gradients and update."""
