"""Reads the event files of TensorBoard."""

import io
import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c


def board_events(folder: pathlib.Path) -> list[Event]:
    """All events, as TensorBoard reads them: each with its length and checksums."""
    events = []
    for path in sorted(folder.iterdir()):
        data = io.BytesIO(path.read_bytes())
        while head := data.read(12):
            size, check = struct.unpack("<QI", head)
            assert check == masked_crc32c(head[:8])
            body = data.read(size)
            assert struct.unpack("<I", data.read(4))[0] == masked_crc32c(body)
            events.append(Event.FromString(body))
    return events
