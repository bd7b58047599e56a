"""The six classes that each framework implements: see `keras_deepseek.backend.Backend`."""
