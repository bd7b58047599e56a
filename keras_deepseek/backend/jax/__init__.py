"""The backend of JAX."""

from keras_deepseek.backend import Backend
from keras_deepseek.backend.jax.compute import JaxCompute
from keras_deepseek.backend.jax.devices import JaxDevices
from keras_deepseek.backend.jax.distribution import JaxDistribution
from keras_deepseek.backend.jax.export import JaxExport
from keras_deepseek.backend.jax.inference import JaxInference
from keras_deepseek.backend.jax.step import JaxStep

BACKEND = Backend(
    devices=JaxDevices(),
    compute=JaxCompute(),
    inference=JaxInference(),
    step=JaxStep(),
    distribution=JaxDistribution(),
    export=JaxExport(),
)
