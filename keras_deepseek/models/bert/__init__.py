"""BERT: text encoders that are trained to predict masked tokens."""

from keras_deepseek.models.bert.bert_backbone import BertBackbone
from keras_deepseek.models.bert.bert_masked_lm import BertMaskedLM
from keras_deepseek.models.bert.config import BertConfig

__all__ = ["BertBackbone", "BertConfig", "BertMaskedLM"]
