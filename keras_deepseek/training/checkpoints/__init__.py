"""The checkpoints of a training: their content, the times of writing, and resuming."""
