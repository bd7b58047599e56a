"""Base classes and layers that several language model families share."""

from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone
from keras_deepseek.models.decoder.decoder_block import DecoderBlock
from keras_deepseek.models.decoder.multi_token_loss import MultiTokenLoss
from keras_deepseek.models.decoder.token_logits import TokenLogits

__all__ = ["DecoderBackbone", "DecoderBlock", "MultiTokenLoss", "TokenLogits"]
