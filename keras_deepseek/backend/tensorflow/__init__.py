"""The backend of TensorFlow."""

from keras_deepseek.backend import Backend
from keras_deepseek.backend.tensorflow.compute import TensorFlowCompute
from keras_deepseek.backend.tensorflow.devices import TensorFlowDevices
from keras_deepseek.backend.tensorflow.distribution import TensorFlowDistribution
from keras_deepseek.backend.tensorflow.export import TensorFlowExport
from keras_deepseek.backend.tensorflow.inference import TensorFlowInference
from keras_deepseek.backend.tensorflow.step import TensorFlowStep

BACKEND = Backend(
    devices=TensorFlowDevices(),
    compute=TensorFlowCompute(),
    inference=TensorFlowInference(),
    step=TensorFlowStep(),
    distribution=TensorFlowDistribution(),
    export=TensorFlowExport(),
)
