"""Training: the `Trainer` around `model.fit`, and how sequences become its batches."""

from keras_deepseek.training.cluster import ClusterSpec
from keras_deepseek.training.length_buckets import LengthBuckets
from keras_deepseek.training.sequence_packing import pack_sequences
from keras_deepseek.training.trainer import Trainer

__all__ = ["ClusterSpec", "LengthBuckets", "Trainer", "pack_sequences"]
