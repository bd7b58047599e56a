"""Batches of masked tokens, masked anew in each epoch: what `BertMaskedLM` is trained on.

It stands before `fit` and `Trainer.fit`, which take it as any other `keras.utils.PyDataset`.
"""

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
    """Batches of tokens some of which are masked, with what these were as targets.

    Choose it to train a masked language model by `fit` or `Trainer.fit`. Which tokens are masked
    is drawn anew in each epoch, by `mask_tokens`; one seed gives one sequence of batches, whoever
    reads them and in which order.

    Args:
        inputs: dict of integer arrays of shape `(num_rows, length)`, by the names of the model's
            inputs: `"token_ids"` at least. `"padding_mask"` is made where it is missing, 0 where a
            token is `padding_token_id`, and `"segment_ids"` of zeros.
        batch_size: integer. Rows of a batch. Defaults to `32`.
        mask_token_id: integer. As in `mask_tokens`.
        vocabulary_size: integer. As in `mask_tokens`.
        special_token_ids: integers. As in `mask_tokens`; `padding_token_id` is one without being
            named. Defaults to `()`.
        padding_token_id: integer. The token of padding. Defaults to `0`.
        use_mask_positions: boolean. Whether batches have `"mask_positions"`, as many in each row,
            and the targets of these alone. Defaults to `False`.
        shuffle: boolean. Whether rows change places each epoch. Defaults to `True`.
        seed: integer. What is drawn by. Defaults to `0`.
        share: float. Share of tokens that are chosen. Defaults to `0.15`.
        **kwargs: Arguments of `keras.utils.PyDataset`, such as `workers`.

    Raises:
        InvalidInputError: `"token_ids"` are missing, shapes differ, or what `mask_tokens` refuses.

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
        self.seed = check_integer("seed", seed, least=0)
        self._masks_per_sequence: int | None = None
        tokens = self._inputs["token_ids"]
        mask_tokens(tokens[:1], **self._masking)  # Says now what is wrong with the arguments.
        if check_boolean("use_mask_positions", use_mask_positions):
            special = [mask_token_id, *self._masking["special_token_ids"]]
            longest = (~np.isin(tokens, special)).sum(axis=1).max(initial=1)
            self._masks_per_sequence = max(1, int(count_masked(longest, share)))
        self._epoch = 0

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
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
    """Returns the arrays, with a padding mask and segments."""
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
                f"`inputs` must be of one shape; {name!r} has {array.shape}, and 'token_ids' have "
                f"{tokens.shape}."
            )
    return arrays
