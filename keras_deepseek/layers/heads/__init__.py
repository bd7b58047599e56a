"""Layers between the hidden states of a model and its predictions of tokens, or their loss."""

from keras_deepseek.layers.heads.chunked_cross_entropy import ChunkedCrossEntropy
from keras_deepseek.layers.heads.masked_position_head import MaskedPositionHead
from keras_deepseek.layers.heads.multi_token_prediction import MultiTokenPrediction
from keras_deepseek.layers.heads.sampled_softmax import SampledSoftmax

__all__ = ["ChunkedCrossEntropy", "MaskedPositionHead", "MultiTokenPrediction", "SampledSoftmax"]
