"""Real text for masked-language pretraining: the paragraphs of Python's own reference.

`pydoc_data.topics` ships with Python. A paragraph is a document, of as many tokens as it has words
and signs; half of them have fewer than 30, some have hundreds. Which tokens are masked is drawn
once: whoever trains on these documents learns the same predictions.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pydoc_data import topics
from typing import Any

import keras
import numpy as np

from keras_deepseek.training import (
    LengthBuckets,
    gather_masked_positions,
    mask_tokens,
    pack_sequences,
)

VOCABULARY_SIZE = 30_522
LONGEST = 128
ROW_LENGTH = 160
"""Two rows of so many tokens hold what eight documents do, in the mean."""

IGNORED = -100
_BEGIN, _END, _MASK, _FIRST_WORD = 101, 102, 103, 1_000
_SHARE = 0.15


@dataclass(frozen=True)
class Documents:
    """Documents with some of their tokens masked.

    Args:
        token_ids: list of integer arrays, one a document.
        targets: list of integer arrays: the token that was masked, and elsewhere `IGNORED`.
    """

    token_ids: list[Any]
    targets: list[Any]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all documents together."""
        return sum(map(len, self.token_ids))


def read_documents(number: int, seed: int = 0, longest: int = LONGEST) -> Documents:
    """Returns documents in a random order, again from the first where there are not as many.

    Args:
        number: integer. How many.
        seed: integer. What their order and the masks are drawn by. Defaults to `0`.
        longest: integer. The tokens that are left of longer ones. Defaults to `LONGEST`.
    """
    paragraphs = {
        paragraph: None
        for name in sorted(topics.topics)
        for paragraph in re.split(r"\n\s*\n", topics.topics[name].lower())
        if paragraph.strip()
    }
    words = [re.findall(r"\w+|[^\w\s]", paragraph)[: longest - 2] for paragraph in paragraphs]
    counts = Counter(word for document in words for word in document)
    ids = {word: _FIRST_WORD + i for i, (word, _) in enumerate(counts.most_common())}
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(words))
    documents = Documents([], [])
    for index in range(number):
        document = words[order[index % len(words)]]
        whole = np.array([_BEGIN, *(ids[word] for word in document), _END], "int32")
        token_ids, targets = _mask(whole, len(ids), rng)
        documents.token_ids.append(token_ids)
        documents.targets.append(targets)
    return documents


def split(documents: Documents, number: int) -> tuple[Documents, Documents]:
    """Returns documents without the last so many, and those.

    Args:
        documents: `Documents`.
        number: integer.
    """
    ids, targets = documents.token_ids, documents.targets
    return (
        Documents(ids[:-number], targets[:-number]),
        Documents(ids[-number:], targets[-number:]),
    )


def count_masked(num_tokens: int) -> int:
    """Returns how many tokens of a document are masked at the most."""
    return max(1, round(_SHARE * num_tokens))


def _mask(token_ids: Any, num_words: int, rng: np.random.Generator) -> tuple[Any, Any]:
    masked, targets = mask_tokens(
        token_ids[None],
        mask_token_id=_MASK,
        vocabulary_size=_FIRST_WORD + num_words,
        special_token_ids=range(_FIRST_WORD),
        share=_SHARE,
        ignore_class=IGNORED,
        seed=rng,
    )
    return masked[0], targets[0]


def pad(documents: Documents, length: int | None = LONGEST) -> tuple[dict[str, Any], Any]:
    """Returns inputs and targets of shape `(num_documents, length)`; `None`: that of the longest.

    Args:
        documents: `Documents`.
        length: integer or `None`. Defaults to `LONGEST`.
    """
    lengths = np.array([len(token_ids) for token_ids in documents.token_ids])
    shape = (len(lengths), int(lengths.max()) if length is None else length)
    token_ids, targets = np.zeros(shape, "int32"), np.full(shape, IGNORED, "int32")
    for row, (ids, of_one) in enumerate(zip(documents.token_ids, documents.targets, strict=True)):
        token_ids[row, : len(ids)], targets[row, : len(ids)] = ids, of_one
    segment_ids = (np.arange(shape[1]) < lengths[:, None]).astype("int32")
    return {"token_ids": token_ids, "segment_ids": segment_ids, "positions": _count_up(shape)}, (
        targets
    )


def pack(documents: Documents, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Returns inputs and targets of rows of `ROW_LENGTH` tokens, with the masked positions.

    Args:
        documents: `Documents`.
        seed: integer. What the order of the rows is drawn by. Defaults to `0`.
    """
    packed = pack_sequences(
        {"token_ids": documents.token_ids, "targets": documents.targets},
        ROW_LENGTH,
        padding={"targets": IGNORED},
        seed=seed,
    )
    return _gather(packed, packed.pop("targets"))


class Buckets(keras.utils.PyDataset):
    """Documents in batches by length, with the masked positions.

    Args:
        documents: `Documents`.
        batch_size: integer. The documents of a batch.
        seed: integer. What the order is drawn by. Defaults to `0`.
    """

    def __init__(self, documents: Documents, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self._buckets = LengthBuckets(
            {"token_ids": documents.token_ids},
            documents.targets,
            boundaries=range(8, LONGEST + 1, 8),
            batch_size=batch_size,
            padding={"targets": IGNORED},
            seed=seed,
        )

    @property
    def num_batches(self) -> int:
        """The number of batches of an epoch."""
        return len(self._buckets)

    def __getitem__(self, index: int) -> Any:
        inputs, targets = self._buckets[index]
        shape = targets.shape
        inputs["segment_ids"] = (inputs["token_ids"] > 0).astype("int32")
        inputs["positions"] = _count_up(shape)
        return _gather(inputs, targets, count_masked(shape[1]))

    def on_epoch_end(self) -> None:
        self._buckets.on_epoch_end()


def _gather(
    inputs: dict[str, Any], targets: Any, count: int | None = None
) -> tuple[dict[str, Any], Any]:
    """Returns inputs with `mask_positions`, and the targets there."""
    positions, chosen = gather_masked_positions(targets, count, ignore_class=IGNORED)
    return {**inputs, "mask_positions": positions}, chosen


def _count_up(shape: tuple[int, int]) -> Any:
    return np.tile(np.arange(shape[1], dtype="int32"), (shape[0], 1))
