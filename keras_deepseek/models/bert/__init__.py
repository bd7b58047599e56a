"""BERT: text encoders that are trained to predict masked tokens."""

from keras_deepseek.models.bert.config import BertConfig
from keras_deepseek.models.bert.model import BertBackbone, BertMaskedLM

__all__ = ["BertBackbone", "BertConfig", "BertMaskedLM"]
