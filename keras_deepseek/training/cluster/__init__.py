"""The processes and devices of a training: specification, resolution, placement."""
