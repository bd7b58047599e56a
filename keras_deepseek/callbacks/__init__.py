"""Plain Keras callbacks: each works with a bare `model.fit` as well as with `Trainer`."""

from keras_deepseek.callbacks.expert_balancing import ExpertBalancing
from keras_deepseek.callbacks.lr_scheduler import LRScheduler
from keras_deepseek.callbacks.metrics_log import MetricsLog
from keras_deepseek.callbacks.progress_display import ProgressDisplay
from keras_deepseek.callbacks.run_recorder import RunRecorder
from keras_deepseek.callbacks.tensorboard_events import TensorBoardEvents

__all__ = [
    "ExpertBalancing",
    "LRScheduler",
    "MetricsLog",
    "ProgressDisplay",
    "RunRecorder",
    "TensorBoardEvents",
]
