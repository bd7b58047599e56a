"""Batches of masked tokens, masked again in each epoch, for a masked language model."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.data.masked_positions import gather_masked_positions
from keras_deepseek.training.data.token_masking import count_masked, mask_tokens


class MaskedTokens(keras.utils.PyDataset):
    """Batches of tokens of which some are masked, with the original tokens as targets.

    Choose it to train a masked language model, such as `BertMaskedLM`, by `fit` or `Trainer.fit`.
    The masked tokens are chosen by `mask_tokens`, anew in each epoch. One seed gives one sequence
    of batches, in whatever order they are read.

    Args:
        inputs: dict of integer arrays of shape `(num_rows, length)`, by the names of the model's
            inputs. `"token_ids"` is required. If they are missing, `"padding_mask"` is made, 0
            where a token is `padding_token_id`, and `"segment_ids"` of zeros.
        batch_size: integer. The number of rows in a batch. Defaults to `32`.
        mask_token_id: integer. See `mask_tokens`.
        vocabulary_size: integer. See `mask_tokens`.
        special_token_ids: integers. See `mask_tokens`. `padding_token_id` is always one of them.
            Defaults to `()`.
        padding_token_id: integer. The token of padding. Defaults to `0`.
        use_mask_positions: boolean. True if batches have `"mask_positions"`, the same number in
            each row, and targets for these only. Defaults to `False`.
        shuffle: boolean. True to shuffle rows in each epoch. Defaults to `True`.
        seed: integer. The seed of masking and shuffling. Defaults to `0`.
        share: float. The share of tokens that are chosen. Defaults to `0.15`.
        **kwargs: Arguments of `keras.utils.PyDataset`, such as `workers`.

    Raises:
        InvalidInputError: `"token_ids"` is missing, shapes differ, or an argument is one that
            `mask_tokens` refuses.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.training import MaskedTokens
    >>> tokens = np.arange(5, 45).reshape(4, 10)
    >>> data = MaskedTokens({"token_ids": tokens}, 2, mask_token_id=4, vocabulary_size=50)
    >>> inputs, targets = data[0]
    >>> sorted(inputs), (targets >= 0).sum(axis=1).tolist()
    (['padding_mask', 'segment_ids', 'token_ids'], [2, 2])
    """

    def __init__(
        self,
        inputs: Mapping[str, Any],
        batch_size: int = 32,
        *,
        mask_token_id: int,
        vocabulary_size: int,
        special_token_ids: Any = (),
        padding_token_id: int = 0,
        use_mask_positions: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        share: float = 0.15,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._inputs = _complete(inputs, padding_token_id)
        self._masking: dict[str, Any] = {
            "mask_token_id": mask_token_id,
            "vocabulary_size": vocabulary_size,
            "special_token_ids": (padding_token_id, *special_token_ids),
            "share": share,
        }
        self.batch_size = check_integer("batch_size", batch_size)
        self.shuffle = check_boolean("shuffle", shuffle)
        self.seed = check_integer("seed", seed, minimum=0)
        self._masks_per_sequence: int | None = None
        tokens = self._inputs["token_ids"]
        mask_tokens(tokens[:1], **self._masking)  # Raises errors of the arguments now.
        if check_boolean("use_mask_positions", use_mask_positions):
            special = [mask_token_id, *self._masking["special_token_ids"]]
            # The row with the most ordinary tokens has the most masked ones.
            most_ordinary = (~np.isin(tokens, special)).sum(axis=1).max(initial=1)
            self._masks_per_sequence = max(1, int(count_masked(most_ordinary, share)))
        self._epoch = 0

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return math.ceil(len(self._inputs["token_ids"]) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[dict[str, Array], Array]:
        rows = np.arange(len(self._inputs["token_ids"]))
        if self.shuffle:
            rows = np.random.default_rng((self.seed, self._epoch)).permutation(rows)
        rows = rows[index * self.batch_size : (index + 1) * self.batch_size]
        batch = {name: array[rows] for name, array in self._inputs.items()}
        batch["token_ids"], targets = mask_tokens(
            batch["token_ids"], seed=(self.seed, self._epoch, index), **self._masking
        )
        if self._masks_per_sequence is not None:
            batch["mask_positions"], targets = gather_masked_positions(
                targets, self._masks_per_sequence
            )
        return batch, targets

    def on_epoch_end(self) -> None:
        self._epoch += 1


def _complete(inputs: Mapping[str, Any], padding_token_id: int) -> dict[str, Array]:
    """Returns the input arrays, completed by a padding mask and segment IDs."""
    if not isinstance(inputs, Mapping) or "token_ids" not in inputs:
        names = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise InvalidInputError(f'`inputs` must be a dict with "token_ids", received {names}.')
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    tokens = arrays["token_ids"]
    arrays.setdefault("padding_mask", (tokens != padding_token_id).astype("int32"))
    arrays.setdefault("segment_ids", np.zeros(tokens.shape, "int32"))
    for name, array in arrays.items():
        if array.shape != tokens.shape:
            raise InvalidInputError(
                f"All arrays in `inputs` must have the same shape; {name!r} has {array.shape}, "
                f"'token_ids' has {tokens.shape}."
            )
    return arrays
