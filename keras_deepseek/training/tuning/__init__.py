"""Short trainings that find a learning rate, a batch size, or the memory of a step."""
