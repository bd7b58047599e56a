"""Running a TensorRT engine: `deploy` verifies by it what it built, `inference` serves by it."""
