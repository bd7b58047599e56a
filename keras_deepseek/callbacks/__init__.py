"""Plain Keras callbacks: each works with a bare `model.fit` as well as with `Trainer`."""

from keras_deepseek.backend import installed_keras  # noqa: F401 - Its error comes first.
from keras_deepseek.callbacks.experiment_logger import MlflowLogger, WandbLogger
from keras_deepseek.callbacks.expert_balancing import ExpertBalancing
from keras_deepseek.callbacks.lr_scheduler import LRScheduler
from keras_deepseek.callbacks.metrics_log import MetricsLog
from keras_deepseek.callbacks.progress_display import ProgressDisplay
from keras_deepseek.callbacks.run_recorder import RunRecorder
from keras_deepseek.callbacks.tensorboard_events import TensorBoardEvents
from keras_deepseek.callbacks.throughput_meter import ThroughputMeter
from keras_deepseek.callbacks.training_flops import count_training_flops, estimate_training_flops

__all__ = [
    "ExpertBalancing",
    "LRScheduler",
    "MetricsLog",
    "MlflowLogger",
    "ProgressDisplay",
    "RunRecorder",
    "TensorBoardEvents",
    "ThroughputMeter",
    "WandbLogger",
    "count_training_flops",
    "estimate_training_flops",
]


def __dir__() -> list[str]:
    return sorted(__all__)
