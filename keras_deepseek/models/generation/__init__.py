"""Text generation: sampling, and the compiled prefill and decode steps."""

from keras_deepseek.models.generation.sampler import Sampler

__all__ = ["Sampler"]
