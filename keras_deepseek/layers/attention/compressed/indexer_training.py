"""Whether the indexer of an attention layer is trained, which must survive freezing and saving."""

from typing import Any

import keras


class IndexerTraining(keras.Layer):
    """What an attention layer inherits, ahead of its other base, that has an `indexer`.

    The choice of an indexer has no gradient, so a fit must leave its weights alone, or Keras warns:
    also after the layer was frozen and thawed, by which Keras sets all inner layers alike. It says
    what holds by the config, as `train_indexer`.
    """

    indexer: Any
    _trains_indexer = False

    def _set_indexer_training(self, train_indexer: bool) -> None:
        """Sets at first whether the indexer is trained; from then on its `trainable` does."""
        self._trains_indexer = train_indexer
        self.indexer.trainable = self.trainable and train_indexer

    @property
    def train_indexer(self) -> bool:
        """Whether the indexer is trained, where the layer is."""
        return bool(self.indexer.trainable) if self.trainable else self._trains_indexer

    @property
    def trainable(self) -> bool:
        """Settable boolean. Whether the layer is trained."""
        return bool(super().trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        trains_indexer = self.train_indexer
        keras.Layer.trainable.fset(self, value)
        self._set_indexer_training(trains_indexer)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "train_indexer": self.train_indexer}
