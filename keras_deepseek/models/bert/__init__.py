"""BERT: encoders of text, trained on tokens that were masked."""

from keras_deepseek.models.bert.bert_backbone import BertBackbone
from keras_deepseek.models.bert.bert_masked_lm import BertMaskedLM
from keras_deepseek.models.bert.config import BertConfig

__all__ = ["BertBackbone", "BertConfig", "BertMaskedLM"]
