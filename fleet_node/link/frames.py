"""Frames around what is serialised already: a report is encoded once, when it is journaled, and sent as these bytes.

A message in a message is its tag, its length and its bytes (https://protobuf.dev/programming-guides/encoding/): writing
these two numbers spares parsing every report only to copy it from list to frame and serialise it again.
"""

from __future__ import annotations

from collections.abc import Iterable

from fleet.v1.command_pb2 import ReportList
from fleet.v1.gateway_pb2 import NodeControl

_LENGTH_DELIMITED = 2  # wire type


def encode_reports(reports: Iterable[bytes]) -> bytes:
    """A serialised `NodeControl` with serialised `Report`s in this order."""
    parts: list[bytes] = []
    for report in reports:
        parts += (_REPORT_TAG, _varint(len(report)), report)
    listed = b"".join(parts)
    return _REPORTS_TAG + _varint(len(listed)) + listed


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    if value < 0x80:
        return _ONE_BYTE[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_ONE_BYTE = [bytes((value,)) for value in range(0x80)]
_REPORT_TAG = _varint(ReportList.REPORTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED)
_REPORTS_TAG = _varint(NodeControl.REPORTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED)
