"""A chunk: frames of one stream as they came, compressed together, with the numbers that their series have in the
database.

    1 byte version | zstd( u32 count | count x i32 number of stream series 0, 1, ... | frames: u32 length | frame )

All integers are little-endian. Zstandard rather than zlib: a third smaller on full frames, for a quarter of the CPU.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from sys import byteorder

from google.protobuf.message import DecodeError
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError, frame_content_size

from fleet.v1 import telemetry_pb2

_VERSION = b"\x01"
_LEVEL = 3
_MAX_UNPACKED_BYTES = 64 * 1024 * 1024
_U32 = struct.Struct("<I")


class ChunkError(ValueError):
    """A chunk cannot be read."""


class Packer:
    """Makes chunks. One thread uses it."""

    def __init__(self) -> None:
        self._compressor = ZstdCompressor(level=_LEVEL, write_checksum=True)

    def pack(self, numbers: Sequence[int], frames: Sequence[bytes]) -> bytes:
        """Compress frames. `numbers` maps the stream's series to the database's; -1 for one that is not kept."""
        column = array("i", numbers)
        if byteorder == "big":
            column.byteswap()
        parts = [_U32.pack(len(numbers)), column.tobytes()]
        for frame in frames:
            parts += (_U32.pack(len(frame)), frame)
        return _VERSION + self._compressor.compress(b"".join(parts))


def unpack(payload: bytes) -> tuple[Sequence[int], Iterator[telemetry_pb2.TelemetryBatch]]:
    """Numbers and batches of a chunk.

    Raises:
        ChunkError: it is damaged; the iterator raises it too.
    """
    if payload[:1] != _VERSION:
        raise ChunkError("a telemetry chunk of an unknown version")
    content = _decompress(payload[1:])
    if len(content) < _U32.size:
        raise ChunkError("a telemetry chunk is cut off")
    (count,) = _U32.unpack_from(content)
    start = _U32.size + 4 * count
    if start > len(content):
        raise ChunkError("a telemetry chunk is cut off")
    numbers = array("i")
    numbers.frombytes(content[_U32.size : start])
    if byteorder == "big":
        numbers.byteswap()
    return numbers, _batches(content, start)


def _decompress(packed: bytes) -> bytes:
    try:
        if not 0 <= frame_content_size(packed) <= _MAX_UNPACKED_BYTES:
            raise ChunkError("a telemetry chunk is too large")
        return ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except ZstdError as error:
        raise ChunkError("a telemetry chunk is damaged") from error


def _batches(content: bytes, start: int) -> Iterator[telemetry_pb2.TelemetryBatch]:
    while start < len(content):
        try:
            (size,) = _U32.unpack_from(content, start)
            frame = content[start + _U32.size : start + _U32.size + size]
            yield telemetry_pb2.TelemetryBatch.FromString(frame)
        except (struct.error, DecodeError) as error:
            raise ChunkError("a telemetry chunk is damaged") from error
        start += _U32.size + size
