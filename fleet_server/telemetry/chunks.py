"""A chunk: frames of one stream as they came, compressed together, with the numbers that their series have in the
database.

    1 byte version | zlib( u32 count | count x i32 number of stream series 0, 1, ... | frames: u32 length | frame )

All integers are little-endian. Compression level 1: on telemetry, level 6 saves 6% more and takes five times as long.
The window is no larger than the content: zlib clears it for each chunk, and an idle node's chunk has a kilobyte.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from sys import byteorder

from google.protobuf.message import DecodeError

from fleet.v1 import telemetry_pb2

_VERSION = b"\x01"
_LEVEL = 1
_LEAST_WINDOW_BITS = 9
_MAX_UNPACKED_BYTES = 64 * 1024 * 1024
_U32 = struct.Struct("<I")


class ChunkError(ValueError):
    """A chunk cannot be read."""


def pack(numbers: Sequence[int], frames: Sequence[bytes]) -> bytes:
    """Compress frames. `numbers` maps the stream's series to the database's; -1 for one that is not kept."""
    column = array("i", numbers)
    if byteorder == "big":
        column.byteswap()
    parts = [_U32.pack(len(numbers)), column.tobytes()]
    for frame in frames:
        parts += (_U32.pack(len(frame)), frame)
    content = b"".join(parts)
    window_bits = min(zlib.MAX_WBITS, max(_LEAST_WINDOW_BITS, len(content).bit_length()))
    return _VERSION + zlib.compress(content, _LEVEL, wbits=window_bits)


def unpack(payload: bytes) -> tuple[Sequence[int], Iterator[telemetry_pb2.TelemetryBatch]]:
    """Numbers and batches of a chunk.

    Raises:
        ChunkError: it is damaged; the iterator raises it too.
    """
    if payload[:1] != _VERSION:
        raise ChunkError("a telemetry chunk of an unknown version")
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(payload[1:], _MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise ChunkError("a telemetry chunk is damaged") from error
    if not unpacker.eof or len(content) < _U32.size:
        raise ChunkError("a telemetry chunk is cut off or too large")
    (count,) = _U32.unpack_from(content)
    start = _U32.size + 4 * count
    numbers = array("i")
    if start > len(content):
        raise ChunkError("a telemetry chunk is cut off")
    numbers.frombytes(content[_U32.size : start])
    if byteorder == "big":
        numbers.byteswap()
    return numbers, _batches(content, start)


def _batches(content: bytes, start: int) -> Iterator[telemetry_pb2.TelemetryBatch]:
    while start < len(content):
        try:
            (size,) = _U32.unpack_from(content, start)
            frame = content[start + _U32.size : start + _U32.size + size]
            yield telemetry_pb2.TelemetryBatch.FromString(frame)
        except (struct.error, DecodeError) as error:
            raise ChunkError("a telemetry chunk is damaged") from error
        start += _U32.size + size
