"""Base class for attention layers that can train their lightning indexer."""

from typing import Any

import keras


class IndexerTraining(keras.Layer):
    """A base class that keeps `train_indexer` of an attention layer through freezing and saving.

    List it before the other base class. The indexer's choice has no gradient, so by default a fit
    must leave its weights alone, or Keras warns. Setting `trainable` of the layer sets all inner
    layers alike; this class then restores the indexer's own value, and saves it in the config as
    `train_indexer`.
    """

    indexer: Any
    _trains_indexer = False

    def _set_indexer_training(self, train_indexer: bool) -> None:
        """Sets the initial `trainable` of the indexer. Later changes of it take precedence."""
        self._trains_indexer = train_indexer
        self.indexer.trainable = self.trainable and train_indexer

    @property
    def train_indexer(self) -> bool:
        """True if the indexer is trained whenever the layer is."""
        return bool(self.indexer.trainable) if self.trainable else self._trains_indexer

    @property
    def trainable(self) -> bool:
        """True if the layer is trained. Settable."""
        return bool(super().trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        trains_indexer = self.train_indexer
        keras.Layer.trainable.fset(self, value)
        self._set_indexer_training(trains_indexer)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "train_indexer": self.train_indexer}
