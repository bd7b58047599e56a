"""Searches for a learning rate and a batch size, and reports a step's memory."""
