"""The steps of rows of KerasHub's language models, which take one index for a whole batch."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.keras_hub_tasks import fill_cache
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.models.generation.row_functions import Cache
from keras_deepseek.models.generation.row_steps import RowSteps
from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder

_LEAST_SLOTS = 64
"""The slots of the shortest staging cache. Others have twice as many, and so on."""

_LENGTHS = (3, 5)
"""Two lengths that tell which axis of a cache is that of the slots."""


class KerasHubRows(RowSteps):
    """The steps of KerasHub's `CausalLM`, as those of `RowSteps`.

    A prompt is read at once, not in chunks: `read` takes all of its tokens, with a `start` of 0, so
    that no row decodes meanwhile. Nothing keeps a prefix for other prompts. JAX computes the rows
    together by a vectorized map; TensorFlow and PyTorch compute them one after the other.

    Args:
        task: `keras_hub.models.CausalLM`, with a `call_with_cache` and a cache that has one axis of
            slots.

    Raises:
        NotSupportedError: The task has another cache.
    """

    def __init__(self, task: Any) -> None:
        rows: Any = _TaskOfRows(task)
        super().__init__(rows, chunk_size=_LEAST_SLOTS)
        self._recorded = None  # PyTorch runs KerasHub's layers as they are.
        self.tokenizer = KerasHubTokenizer(task.preprocessor) if task.preprocessor else None

    def _read_size(self, slots: int) -> int:
        return slots

    def _staging_slots(self, prompt_length: int) -> int:
        slots = super()._staging_slots(prompt_length)
        return slots if self.max_length is None else min(slots, self.max_length)


class KerasHubTokenizer:
    """The tokenizer of a KerasHub preprocessor, as a `Tokenizer` is one.

    Args:
        preprocessor: `keras_hub.models.CausalLMPreprocessor`.
    """

    most_bytes_per_token = None

    def __init__(self, preprocessor: Any) -> None:
        self._tokenizer = preprocessor.tokenizer
        names = ("start_token_id", "end_token_id", "pad_token_id")
        start, end, pad = (getattr(self._tokenizer, name, None) for name in names)
        self._starts = [start] if preprocessor.add_start_token and start is not None else []
        self.stop_token_ids = () if end is None else (end,)
        self._special_tokens = {start, end, pad}

    def tokenize(self, texts: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text, with a start token if the preprocessor adds one."""
        token_ids = np.asarray(self._tokenizer.tokenize(texts)).tolist()
        return [*self._starts, *token_ids] if add_special_tokens else token_ids

    def detokenize(self, token_ids: Any, *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids."""
        skipped = self._special_tokens if skip_special_tokens else ()
        text = self._tokenizer.detokenize([x for x in token_ids if x not in skipped])
        return text if isinstance(text, str) else np.asarray(text).item().decode()

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """Returns a decoder of tokens that arrive one at a time."""
        return StreamDecoder(partial(self.detokenize, skip_special_tokens=skip_special_tokens))


class _TaskOfRows:
    """KerasHub's task with the methods of a `CausalLM` that `RowSteps` calls.

    Its cache has the slots before the other axes of a row. Its hidden states are logits: all models
    have these.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self.backbone = SimpleNamespace(call_with_cache=self._call_backbone)
        self.output_shape = task.output_shape
        self.variables = task.variables
        # KerasHub's position embeddings have a limit under this name.
        limit = task.backbone.get_config().get("max_sequence_length")
        self.config = SimpleNamespace(max_length=limit)
        few, more = (fill_cache(task, np.ones((1, length), "int32")) for length in _LENGTHS)
        axes = [axis for axis, size in enumerate(few.shape) if size != more.shape[axis]]
        if len(axes) != 1 or (few.shape[axes[0]], more.shape[axes[0]]) != _LENGTHS:
            raise NotSupportedError(
                f"{type(task).__name__} has a cache of the shape {tuple(few.shape)} for "
                f"{_LENGTHS[0]} tokens. Rows can only be served where one axis counts them."
            )
        self._slot_axis = axes[0] - 1
        row = [size for axis, size in enumerate(few.shape) if axis not in (0, axes[0])]
        self._row_shape, self._dtype = row, keras.backend.standardize_dtype(few.dtype)

    def make_cache(self, rows: int, slots: int) -> Cache:
        tokens = ops.zeros((rows, slots, *self._row_shape), self._dtype)
        return [{"tokens": tokens, "mask": ops.zeros((rows, slots), "bool")}]

    def call_with_cache(
        self, token_ids: Any, cache: Cache, index: Any, *_: Any, **__: Any
    ) -> tuple[Any, Any, Cache]:
        """Returns logits twice, and the cache. Padding may only follow the tokens of a prompt.

        A later token takes its slot before it is seen.
        """
        length = token_ids.shape[1]

        def call_row(row: tuple[Any, Any, Any]) -> tuple[Any, Any]:
            tokens, row_cache, start = row
            logits, _, row_cache = self._task.call_with_cache(tokens[None], row_cache[None], start)
            slots = start + ops.arange(length, dtype="int32")
            written = ops.take(row_cache[0], slots, axis=self._slot_axis)
            return ops.cast(logits[0], "float32"), written

        inference = backend.current().inference
        axes = [*range(2 + len(self._row_shape))]
        axes.insert(1 + self._slot_axis, axes.pop(1))
        rows = token_ids, ops.transpose(cache[0]["tokens"], axes), index
        logits, written = inference.map_rows(call_row, rows, ("float32", self._dtype))
        written = ops.moveaxis(written, 1 + self._slot_axis, 1)
        tokens = inference.write_slots_by_row(cache[0]["tokens"], index, written)
        return logits, logits, [{**cache[0], "tokens": tokens}]

    def _call_backbone(self, *args: Any) -> tuple[Any, Cache]:
        logits, _, cache = self.call_with_cache(*args)
        return logits, cache

    def token_logits(self, hidden: Any) -> Any:
        return hidden
