"""The searches for a learning rate and a batch size, and the report of a step's memory."""
