"""The cached answers of one version of a model, for inputs that come again."""

import hashlib
import threading
from collections import OrderedDict

import numpy as np

from keras_deepseek.artifacts.signature import Array

MAX_BYTES = 256 * 2**20
"""The limit for the cached arrays, whatever the number of entries."""

_Outputs = dict[str, Array]


class ResponseCache:
    """A least-recently-used cache of answers. Any thread may use it.

    Its keys are cryptographic hashes of the inputs, so no client can forge the key of other inputs.
    `max_bytes` limits the cached arrays.
    """

    def __init__(self, max_entries: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, _Outputs] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = 0

    def key(self, inputs: dict[str, Array]) -> bytes:
        """Returns a cache key, which is a hash of the inputs' names, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for name, array in sorted(inputs.items()):
            digest.update(f"{name}\0{array.dtype.str}{array.shape}".encode())
            if array.dtype.kind == "O":
                for value in array.ravel().tolist():
                    data = value if isinstance(value, bytes) else str(value).encode()
                    # With its length, where a string ends is unambiguous.
                    digest.update(b"%d:%d:" % (isinstance(value, bytes), len(data)))
                    digest.update(data)
            else:
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.digest()

    def get(self, key: bytes) -> _Outputs | None:
        """Returns copies of the outputs that are cached under a key, or `None`."""
        with self._lock:
            outputs = self._entries.get(key)
            if outputs is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
        return {name: array.copy() for name, array in outputs.items()}

    def put(self, key: bytes, outputs: _Outputs) -> None:
        """Caches copies of outputs. A full cache drops the least recently used entries.

        The arrays themselves are views of a whole batch, which would stay in memory with them.
        """
        size = _size_of(outputs)
        if size > self._max_bytes:
            return
        copies = {name: array.copy() for name, array in outputs.items()}
        with self._lock:
            replaced = self._entries.pop(key, None)
            self._bytes += size - (0 if replaced is None else _size_of(replaced))
            self._entries[key] = copies
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                self._bytes -= _size_of(self._entries.popitem(last=False)[1])

    def counts(self) -> tuple[int, int, int]:
        """Returns the numbers of cache hits, cache misses and cache entries."""
        with self._lock:
            return self._hits, self._misses, len(self._entries)


def _size_of(outputs: _Outputs) -> int:
    # An array of strings holds references, so the lengths of the strings are added.
    return sum(
        array.nbytes + (sum(map(len, array.ravel().tolist())) if array.dtype.kind == "O" else 0)
        for array in outputs.values()
    )
