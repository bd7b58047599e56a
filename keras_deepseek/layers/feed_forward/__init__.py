"""Layers that transform each position by itself."""

from keras_deepseek.layers.feed_forward.swiglu import SwiGLU

__all__ = ["SwiGLU"]
