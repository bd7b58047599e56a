"""Base classes and layers that several language model families share."""

from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone
from keras_deepseek.models.decoder.decoder_block import DecoderBlock
from keras_deepseek.models.decoder.output_layers import MultiTokenLoss, TokenLogits

__all__ = ["DecoderBackbone", "DecoderBlock", "MultiTokenLoss", "TokenLogits"]
