"""The base class of models that compute what another model computes."""

import keras


class ModelWrapper(keras.Model):
    """A model with the inputs, the outputs and the names of another, its `original`."""

    original: keras.Model
