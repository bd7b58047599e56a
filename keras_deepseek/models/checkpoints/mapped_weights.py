"""Weights that are views of memory-mapped files, on PyTorch on a CPU.

A mapped file that is deleted, or replaced by renaming another one over it, stays until the last
view is gone. One that is written in place would change the weights, also those that were written to
since: Linux drops their pages with the end of the file, and ends a process that reads them by
SIGBUS. So the files are compared before the weights are used, and weights are copied before they
are trained.
"""

import re
from pathlib import Path

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.checkpoints.safetensors_file import MappedFile

_MOUNTS = Path("/proc/self/mountinfo")
_LOCAL_FILE_SYSTEMS = {
    *("bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "overlay", "squashfs"),
    *("tmpfs", "xfs", "zfs"),
}
_ESCAPED = re.compile(r"\\(\d{3})")


class MappedWeights:
    """The variables of a model that are views of files, and these files."""

    def __init__(self) -> None:
        self._is_local: dict[Path, bool] = {}
        self._can_decode = False
        self._views: list[tuple[keras.Variable, MappedFile]] = []
        self._files: list[MappedFile] = []

    def add(self, variable: keras.Variable, source: Array, file: MappedFile) -> bool:
        """Makes a variable a view of an array in a mapped file, if possible; returns True then.

        It is possible if the framework can share the memory, and the file is on a local disk. The
        states of layers, which are small, are copied: training assigns them.
        """
        if file.path not in self._is_local:
            self._is_local[file.path] = is_on_local_disk(file.path)
        compute = backend.current().compute
        can_map = variable.trainable and self._is_local[file.path]
        if not (can_map and compute.view_array(variable, source)):
            return False
        self._views.append((variable, file))
        if file not in self._files:
            self._files.append(file)
        return True

    def check(self) -> None:
        """Raises a `CheckpointError` if a file was written to since it was mapped."""
        for file in self._files:
            file.check()

    def prepare_decoding(self) -> None:
        """Checks the files, and copies the weights that would slow down single tokens."""
        self.check()
        if not self._can_decode:
            compute = backend.current().compute
            self._copy([variable for variable, _ in self._views if compute.is_slow_view(variable)])
            self._can_decode = True

    def copy_trainable(self) -> None:
        """Copies the weights that are about to be trained into memory of their own."""
        if any(variable.trainable for variable, _ in self._views):
            self._copy([variable for variable, _ in self._views if variable.trainable])

    def copy_all(self) -> None:
        """Copies all weights into memory of their own."""
        self._copy([variable for variable, _ in self._views])

    def _copy(self, variables: list[keras.Variable]) -> None:
        self.check()
        for variable in variables:
            backend.current().compute.copy_view(variable)
        copied = set(map(id, variables))
        self._views = [view for view in self._views if id(view[0]) not in copied]
        self._files = list({id(file): file for _, file in self._views}.values())


def is_on_local_disk(path: Path) -> bool:
    """Returns True if Linux has a file on a local file system.

    Other machines can change a file on a network file system, and it may go away with its server.
    False for a system without Linux's list of mounts.
    """
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    target = path.resolve()
    mounts = []
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = Path(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), mount.split()[4]))
        if target.is_relative_to(point):
            mounts.append((len(point.parts), source.split()[0]))
    # The last one of those at the longest path is on top of the others.
    longest = max((length for length, _ in mounts), default=0)
    kinds = [kind for length, kind in mounts if length == longest]
    return bool(kinds) and kinds[-1] in _LOCAL_FILE_SYSTEMS
