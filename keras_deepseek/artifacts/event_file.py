"""TensorBoard's event files, written and read without TensorBoard.

A file is a sequence of records: the length in 8 bytes, its checksum, an `Event` message, its
checksum. Checksums are CRC-32C, masked as in TFRecord. Messages are protocol buffers, with the
field numbers of TensorFlow's public `event.proto` and `summary.proto`.
"""

import functools
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from keras_deepseek.artifacts.appending import append_whole
from keras_deepseek.artifacts.protobuf_fields import (
    FIXED32,
    FIXED64,
    VARINT,
    field,
    key,
    read_fields,
    varint,
)
from keras_deepseek.errors import InvalidInputError

_TIME, _STEP, _VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7  # Fields of an `Event`.
_HEAD = struct.Struct("<QI")
_SUM = struct.Struct("<I")


class Scalar(NamedTuple):
    """A number of one step, with its tag."""

    tag: str
    step: int
    value: float
    time: float
    """Seconds since 1970."""


class EventFile:
    """Writes scalars to a new event file in a folder.

    A TensorBoard may read meanwhile: each `write` appends whole records at once.

    Args:
        folder: The folder of the run, made if it is missing.
        keep: Function of a tag and a step that returns a boolean. The events of the folder's other
            files for which it is true are copied into this file, and those files are emptied; a
            running TensorBoard forgets what it has read of them. `None` leaves them unchanged.
        clock: Function that returns the time in seconds.

    Raises:
        InvalidInputError: No file can be made there.

    Example:

    >>> import tempfile
    >>> with EventFile(tempfile.mkdtemp()) as events:
    ...     events.write([Scalar("epoch_loss", 0, 0.5, 1700000000.0)])
    ...     [tag for tag, step, record in read_events(events.path)]
    ['', '', 'epoch_loss']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: Callable[[str, int], bool] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        now = clock()
        head = [_record(_event(now, 0, field(_VERSION, b"brain.Event:2")))]
        others = find_event_files(folder)
        if keep is not None or not others:
            # After a second `SessionLog` with the status START, TensorBoard forgets the events of
            # the run that it read before, from this step on.
            head.append(_record(_event(now, 0, field(_SESSION_LOG, key(1, VARINT) + b"\x01"))))
        if keep is None:
            others = []
        head += [
            record
            for path in others
            for tag, step, record in read_events(path)
            if tag and keep is not None and keep(tag, step)
        ]
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.path = _free_path(Path(folder), now)
            # TensorBoard reads any file with "tfevents" in its name.
            unfinished = self.path.with_name(f"unfinished.{os.getpid()}")
            unfinished.write_bytes(b"".join(head))
            unfinished.rename(self.path)
            # Unbuffered: scalars outlive the process once `write` has returned.
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise InvalidInputError(
                f"No event file can be made in {os.fspath(folder)!r}: {error}. Name another folder."
            ) from error
        for path in others:
            # A running TensorBoard continues with the next file only if this one still exists.
            if path.stat().st_size:
                os.truncate(path, 0)
            else:
                path.unlink()

    def write(self, scalars: Iterable[Scalar]) -> None:
        """Appends scalars, of any tags."""
        append_whole(self._file, b"".join(_record(_scalar_event(scalar)) for scalar in scalars))

    def close(self) -> None:
        """Closes the file. All scalars are in it."""
        self._file.close()

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def find_event_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the event files of a folder, oldest first; the folder may be missing."""
    return sorted(Path(folder).glob("events.out.tfevents.*"))


def read_events(path: str | os.PathLike[str]) -> Iterator[tuple[str, int, bytes]]:
    """Yields the tag, the step and the whole record of each event; the tag `""` if it has none.

    A record that was cut short, as by a crash, ends the file.
    """
    data = Path(path).read_bytes()
    start = 0
    while start + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, start)
        end = start + _HEAD.size + length + _SUM.size
        if checksum != masked_crc32c(data[start : start + 8]) or end > len(data):
            return
        message = data[start + _HEAD.size : end - _SUM.size]
        fields = dict(read_fields(message))
        values = dict(read_fields(dict(read_fields(fields.get(_SUMMARY, b""))).get(1, b"")))
        yield values.get(1, b"").decode(), fields.get(_STEP, 0), data[start:end]
        start = end


def masked_crc32c(data: bytes) -> int:
    """Returns the checksum of a TFRecord."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _make_table()


def _free_path(folder: Path, now: float) -> Path:
    """Returns a file name that sorts after the older ones, the order in which TensorBoard reads."""
    stem = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
    number = 0
    while (path := folder / f"{stem}.{number:05d}.v2").exists():
        number += 1
    return path


@functools.lru_cache(256)
def _head(length: int) -> bytes:
    return _HEAD.pack(length, masked_crc32c(struct.pack("<Q", length)))


def _record(message: bytes) -> bytes:
    return _head(len(message)) + message + _SUM.pack(masked_crc32c(message))


def _event(seconds: float, step: int, what: bytes) -> bytes:
    head = key(_TIME, FIXED64) + struct.pack("<d", seconds)
    # Protocol buffers do not write a number that is 0.
    return head + (key(_STEP, VARINT) + varint(step) if step else b"") + what


def _scalar_event(scalar: Scalar) -> bytes:
    try:
        number = struct.pack("<f", scalar.value)
    except OverflowError:  # Beyond the range of float32.
        number = struct.pack("<f", float("inf") if scalar.value > 0 else float("-inf"))
    value = field(1, scalar.tag.encode()) + key(2, FIXED32) + number
    return _event(scalar.time, scalar.step, field(_SUMMARY, field(1, value)))
