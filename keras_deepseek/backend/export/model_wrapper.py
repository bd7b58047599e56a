"""The base class of models that compute what another model computes."""

from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import functional_graph


class ModelWrapper(keras.Model):
    """A model with the inputs, the outputs and the names of another, its `original`."""

    original: keras.Model

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the outputs of the original as `KerasTensor`s."""
        return self.original.compute_output_spec(inputs)

    @property
    def input(self) -> Any:
        """The symbolic inputs of the original."""
        return (self._functional or self.original).input

    @property
    def output(self) -> Any:
        """The symbolic outputs of the original."""
        return (self._functional or self.original).output

    @property
    def inputs(self) -> Any:
        """The flat symbolic inputs of the original."""
        return self.original.inputs

    @property
    def outputs(self) -> Any:
        """The flat symbolic outputs of the original."""
        return self.original.outputs

    @property
    def output_names(self) -> Any:
        """The names of the original's outputs."""
        return self.original.output_names

    @property
    def _functional(self) -> Any:  # Keras's name for the graph inside a `Sequential`.
        return functional_graph(self.original)
