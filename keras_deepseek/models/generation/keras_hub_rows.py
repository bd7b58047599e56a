"""The steps of rows of KerasHub's language models, which take one index for a whole batch."""

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.keras_hub_tasks import fill_cache
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.models.generation.compiled_steps import to_numpy
from keras_deepseek.models.generation.row_functions import Cache
from keras_deepseek.models.generation.row_steps import RowSteps

_LEAST_SLOTS = 64
"""The slots of the shortest staging cache. Others have twice as many, and so on."""

_LENGTHS = (3, 5)
"""Two lengths that tell which axis of a cache is that of the slots."""


class KerasHubRows(RowSteps):
    """The steps of KerasHub's `CausalLM`, as those of `RowSteps`.

    Before they are used, a row's logits are compared with those of a call of the task. A prompt is
    read at once, not in chunks: `read` takes all of its tokens, with a `start` of 0, so that no row
    decodes meanwhile. Nothing keeps a prefix for other prompts. JAX computes the rows together by a
    vectorized map; TensorFlow and PyTorch compute them one after the other.

    Args:
        task: `keras_hub.models.CausalLM`, with a `call_with_cache` and a cache that has one axis of
            slots.

    Raises:
        NotSupportedError: The task has another cache, or a row has other logits.
    """

    def __init__(self, task: Any) -> None:
        rows: Any = _TaskOfRows(task)
        super().__init__(rows, chunk_size=_LEAST_SLOTS)
        self._recorded = None  # PyTorch runs KerasHub's layers as they are.
        error = float(to_numpy(self._call("compare", _compare, None)[0])["error"])
        if not error <= rows.tolerance:
            raise NotSupportedError(
                f"The logits of {type(task).__name__} with a cache differ from those of a call by "
                f"{error:.2g} of the largest one, so that its texts would be wrong."
            )

    def _read_size(self, slots: int) -> int:
        return slots

    def _staging_slots(self, prompt_length: int) -> int:
        slots = super()._staging_slots(prompt_length)
        return slots if self.max_length is None else min(slots, self.max_length)


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
        (shape, self._dtype), (longer, _) = (_describe_cache(task, length) for length in _LENGTHS)
        axes = [axis for axis, size in enumerate(shape) if size != longer[axis]]
        if len(axes) != 1 or (shape[axes[0]], longer[axes[0]]) != _LENGTHS:
            raise NotSupportedError(
                f"{type(task).__name__} has a cache of the shape {shape} for {_LENGTHS[0]} tokens. "
                "Rows can only be served where one axis counts them."
            )
        self._slot_axis = axes[0] - 1
        self._row_shape = [size for axis, size in enumerate(shape) if axis not in (0, axes[0])]
        self.tolerance = 1e-3 if self._dtype == "float32" else 0.1
        """The largest relative difference of logits that is rounding."""

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

    def measure_error(self) -> Any:
        """Returns the largest difference of a row's logits from those of a call, relative to these.

        The row reads a prompt with padding, whose last slots are then written again.
        """
        length = _LENGTHS[1]
        tokens = np.arange(length, dtype="int32")[None] % self.output_shape[-1]
        inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
        expected = self._task({name: ops.convert_to_tensor(x) for name, x in inputs.items()})
        cache, parts = self.make_cache(1, 2 * length), []
        padded = np.concatenate([tokens[:, :-1], tokens[:, :2]], axis=1)
        for start, ids in ((0, padded), (length - 1, tokens[:, -1:])):
            index = ops.convert_to_tensor(np.asarray([start], "int32"))
            logits, _, cache = self.call_with_cache(ops.convert_to_tensor(ids), cache, index)
            parts.append(logits[:, : length - 1])
        expected = ops.cast(expected, "float32")
        difference = ops.max(ops.abs(ops.concatenate(parts, axis=1) - expected))
        return difference / (ops.max(ops.abs(expected)) + keras.config.epsilon())


def _compare(model: Any, _: None) -> tuple[dict[str, Any], tuple[()]]:
    return {"error": model.measure_error()}, ()


def _describe_cache(task: Any, length: int) -> tuple[tuple[int, ...], str]:
    """Returns the shape and the dtype of a cache of so many tokens."""
    try:
        cache = fill_cache(task, np.ones((1, length), "int32"))
        return tuple(cache.shape), keras.backend.standardize_dtype(cache.dtype)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise NotSupportedError(
            f"{type(task).__name__} makes no cache of token ids alone, as one tensor, so its rows "
            f"can't be served: {error}"
        ) from error
