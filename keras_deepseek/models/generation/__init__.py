"""Text generation: sampling, and the compiled steps that make token after token."""

from keras_deepseek.models.generation.sampler import Sampler

__all__ = ["Sampler"]
