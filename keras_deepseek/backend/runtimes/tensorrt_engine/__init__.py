"""TensorRT engines: `deploy` verifies with them, and `inference` serves them."""
