"""Event files of TensorBoard, written by tensorboardX.

`tensorboardX.SummaryWriter` does not fit: it queues events, so its `flush` may return before they
are written, and its `purge_step` can't tell tags by step from tags by epoch. This module uses the
file writer below it.
"""

import importlib
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from keras_deepseek.errors import InvalidInputError, MissingExtraError

_HEADER = struct.Struct("<QI")  # The length of the data and its checksum, before each record.
_FOOTER_BYTES = 4  # The checksum of the data, after each record.


class Scalar(NamedTuple):
    """A logged number with its TensorBoard tag, its step and its time."""

    tag: str
    step: int
    value: float
    time: float
    """Seconds since 1970."""


class EventFile:
    """A new TensorBoard event file in the folder of a run.

    Args:
        folder: Created if it is missing.
        keep: Function of a tag and a step that returns true for the events to keep. These move from
            the folder's other files to this file. The other events are dropped, and the other files
            are emptied. A running TensorBoard then forgets the dropped events. Defaults to `None`:
            other files stay unchanged.

    Raises:
        MissingExtraError: tensorboardX is not installed.
        InvalidInputError: The file cannot be created.
    """

    def __init__(
        self, folder: str | os.PathLike[str], keep: Callable[[str, int], bool] | None = None
    ) -> None:
        writers, self._messages = import_tensorboardx()
        earlier_files = find_event_files(folder)
        kept_events = {}
        if keep is not None:
            # Keyed by tag and step, to write an event once that is in two files. A process that was
            # killed before `_empty` leaves such files.
            for path in earlier_files:
                for event in self._read(path):
                    tag = event.summary.value[0].tag if event.summary.value else None
                    if tag is not None and keep(tag, event.step):
                        kept_events[tag, event.step] = event
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files by name. This suffix sorts files of the same second.
            self._writer = writers.EventsWriter(str(Path(folder) / "events"), f".{time.time_ns()}")
        except OSError as error:
            raise InvalidInputError(
                f"No event file can be made in {os.fspath(folder)!r}: {error}. Name another folder."
            ) from error
        if keep is not None or not earlier_files:
            # Makes a running TensorBoard forget what it has read of this run.
            session_log = self._messages.SessionLog(status=self._messages.SessionLog.START)
            self._writer.write_event(
                self._messages.Event(wall_time=time.time(), session_log=session_log)
            )
        for event in kept_events.values():
            self._writer.write_event(event)
        self._writer.flush()
        if keep is not None:
            _empty(earlier_files)

    def write(self, scalars: Iterable[Scalar]) -> None:
        """Writes scalars to disk. They outlive the process."""
        for scalar in scalars:
            event = self._messages.Event(wall_time=scalar.time, step=scalar.step)
            event.summary.value.add(tag=scalar.tag, simple_value=scalar.value)
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _read(self, path: Path) -> Iterator[Any]:
        """Yields the events of an event file, up to the first record that a crash has cut short."""
        records: Any = importlib.import_module("tensorboardX.record_writer")
        data = path.read_bytes()
        start = 0
        while start + _HEADER.size <= len(data):
            length, checksum = _HEADER.unpack_from(data, start)
            end = start + _HEADER.size + length
            is_whole = end + _FOOTER_BYTES <= len(data)
            if not is_whole or checksum != records.masked_crc32c(data[start : start + 8]):
                return
            yield self._messages.Event.FromString(data[start + _HEADER.size : end])
            start = end + _FOOTER_BYTES


def import_tensorboardx() -> tuple[Any, Any]:
    """Returns tensorboardX's modules `event_file_writer` and `event_pb2`."""
    try:
        return (
            importlib.import_module("tensorboardX.event_file_writer"),
            importlib.import_module("tensorboardX.proto.event_pb2"),
        )
    except ImportError as error:
        raise MissingExtraError(
            "tensorboardX", "tensorboard", "to write events for TensorBoard"
        ) from error


def find_event_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the event files of a folder, oldest first; none if the folder is missing."""
    return sorted(Path(folder).glob("events.out.tfevents.*"))


def _empty(paths: list[Path]) -> None:
    """Truncates event files to zero bytes, and deletes those that are empty already."""
    for path in paths:
        # A running TensorBoard moves on to the next file only from a file that still exists.
        if path.stat().st_size:
            os.truncate(path, 0)
        else:
            path.unlink()
