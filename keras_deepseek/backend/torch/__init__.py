"""The backend of PyTorch."""

from keras_deepseek.backend import Backend
from keras_deepseek.backend.torch.compute import TorchCompute
from keras_deepseek.backend.torch.devices import TorchDevices
from keras_deepseek.backend.torch.distribution import TorchDistribution
from keras_deepseek.backend.torch.export import TorchExport
from keras_deepseek.backend.torch.inference import TorchInference
from keras_deepseek.backend.torch.step import TorchStep

BACKEND = Backend(
    devices=TorchDevices(),
    compute=TorchCompute(),
    inference=TorchInference(),
    step=TorchStep(),
    distribution=TorchDistribution(),
    export=TorchExport(),
)
