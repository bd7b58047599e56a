"""Runs TensorRT engines: `deploy` verifies with it, and `inference` serves with it."""
