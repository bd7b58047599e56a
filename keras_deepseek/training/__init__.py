"""Training: the `Trainer` around `model.fit`, learning rate schedules, and sequence data."""

from keras_deepseek.backend import installed_keras  # noqa: F401 - Its error comes first.
from keras_deepseek.backend.call_context import set_loss_normalizer
from keras_deepseek.backend.checkpoint_weights import load_best
from keras_deepseek.backend.processes.gradient_compression import LowRank
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.parameter_server import ParameterServer
from keras_deepseek.training.cluster.transformer_layout_map import transformer_layout_map
from keras_deepseek.training.data.length_buckets import LengthBuckets
from keras_deepseek.training.data.masked_positions import gather_masked_positions
from keras_deepseek.training.data.masked_tokens import MaskedTokens
from keras_deepseek.training.data.sequence_packing import pack_sequences
from keras_deepseek.training.data.token_masking import mask_tokens
from keras_deepseek.training.join_cluster import join_cluster
from keras_deepseek.training.step.muon import Muon
from keras_deepseek.training.step.step_guard import StepGuard
from keras_deepseek.training.step.step_profiler import StepProfile
from keras_deepseek.training.step.warmup_decay import WarmupDecay
from keras_deepseek.training.trainer import Trainer
from keras_deepseek.training.tuning.batch_size_search import BatchSizeSearch
from keras_deepseek.training.tuning.learning_rate_search import LearningRateSearch
from keras_deepseek.training.tuning.measurements import MemoryReport

__all__ = [
    "BatchSizeSearch",
    "ClusterSpec",
    "LearningRateSearch",
    "LengthBuckets",
    "LowRank",
    "MaskedTokens",
    "MemoryReport",
    "Muon",
    "ParameterServer",
    "StepGuard",
    "StepProfile",
    "Trainer",
    "WarmupDecay",
    "gather_masked_positions",
    "join_cluster",
    "load_best",
    "mask_tokens",
    "pack_sequences",
    "set_loss_normalizer",
    "transformer_layout_map",
]


def __dir__() -> list[str]:
    return sorted(__all__)
