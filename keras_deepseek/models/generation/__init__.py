"""Text generation: sampling, and the compiled steps that compute one token after another."""

from keras_deepseek.models.generation.sampler import Sampler

__all__ = ["Sampler"]
