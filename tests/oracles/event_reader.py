"""A strict reader of event files, which shares nothing with what writes them."""

import struct
from collections import defaultdict
from pathlib import Path


def read_scalars(folder):
    """Returns `{tag: [(step, value), ...]}` of all event files of a folder.

    Raises:
        ValueError: A file holds what no event file may hold.
    """
    events = defaultdict(list)
    for path in sorted(Path(folder).glob("*")):
        if not path.stat().st_size:
            continue  # Another file has taken over what it held.
        version, *messages = _messages(path.read_bytes())
        if version.get(3) != [b"brain.Event:2"]:
            raise ValueError(f"{path} does not begin with its version: {version}")
        for message in messages:
            (step,) = message.get(2, [0])
            for summary in message.get(5, []):
                (value,) = _fields(summary)[1]
                value = _fields(value)
                events[value[1][0].decode()].append((step, struct.unpack("<f", value[2][0])[0]))
    return dict(events)


def _messages(data):
    start = 0
    while start < len(data):
        head = data[start : start + 8]
        (length,) = struct.unpack("<Q", head)
        body = data[start + 12 : start + 12 + length]
        sums = data[start + 8 : start + 12] + data[start + 12 + length : start + 16 + length]
        if struct.unpack("<II", sums) != (_masked(head), _masked(body)):
            raise ValueError(f"A checksum is wrong at byte {start}.")
        yield _fields(body)
        start += 16 + length


def _masked(data):
    """Returns the checksum, by the long division that defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def _fields(message):
    fields, start = defaultdict(list), 0

    def varint():
        nonlocal start
        value = shift = 0
        while message[start] & 0x80:
            value |= (message[start] & 0x7F) << shift
            start, shift = start + 1, shift + 7
        value |= message[start] << shift
        start += 1
        return value

    while start < len(message):
        key = varint()
        layout = key & 7
        if layout == 0:
            fields[key >> 3].append(varint())
            continue
        length = {1: 8, 5: 4}[layout] if layout != 2 else varint()
        if start + length > len(message):
            raise ValueError("A field is longer than its message.")
        fields[key >> 3].append(message[start : start + length])
        start += length
    return fields
