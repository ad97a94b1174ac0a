"""The series of one node: their numbers in the database, and the newest value of each, in columns.

Numbers and columns are changed by the flush's worker thread only; other threads may read at any time.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import rules
from fleet_server.telemetry.rules import Series

DROPPED = -1
_NO_SAMPLE = 0
_MAX_INTERNED = 200_000
_interned: dict[Series, Series] = {}


def intern_series(series: Series) -> Series:
    """The one object for a series: nodes of one kind have the same hundred, so a fleet holds them once."""
    if len(_interned) >= _MAX_INTERNED:
        return _interned.get(series, series)
    return _interned.setdefault(series, series)


def encode_labels(series: Series) -> str:
    """Labels as they are stored."""
    return json.dumps(dict(series.labels), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def decode_series(name: str, labels: str, kind: int, unit: str) -> Series:
    """A series from its row."""
    return intern_series(Series(name, tuple(sorted(json.loads(labels).items())), kind, unit))


class Latest(NamedTuple):
    """Newest sample of a series."""

    series: Series
    at_ms: int
    value: float


class NodeSeries:
    """What the server knows of one node's telemetry.

    Args:
        name: the node's name.
        series: by number, from 0, dense.
        last_batch_seq: highest batch_seq stored.
        payload: newest samples as `payload()` made them.
    """

    __slots__ = (
        "_numbers",
        "_series",
        "_times",
        "_values",
        "last_batch_seq",
        "name",
        "newest_ms",
        "saved_at_ms",
        "saved_count",
    )

    def __init__(self, name: str, series: Sequence[Series], last_batch_seq: int, payload: bytes) -> None:
        self.name = name
        self.last_batch_seq = last_batch_seq
        self.saved_at_ms = 0
        self.saved_count = len(series)
        self._series = list(series)
        self._numbers = {each: number for number, each in enumerate(series)}
        self._times = array("q", bytes(8 * len(series)))
        self._values = array("d", bytes(8 * len(series)))
        self._restore(payload)
        self.newest_ms = max(self._times, default=0)

    def number(self, series: Series) -> int:
        """Number of a series, a new one if need be; DROPPED past the cap of a node."""
        number = self._numbers.get(series)
        if number is None:
            if len(self._series) >= rules.MAX_SERIES_PER_NODE:
                return DROPPED
            number = self._numbers[series] = len(self._series)
            self._times.append(_NO_SAMPLE)
            self._values.append(0.0)
            self._series.append(series)
        return number

    def unsaved(self) -> Iterator[tuple[int, Series]]:
        """Series that have no row yet, with their numbers."""
        return ((number, self._series[number]) for number in range(self.saved_count, len(self._series)))

    def note(self, batches: Sequence[telemetry_pb2.TelemetryBatch], numbers: Sequence[int], now_ms: int) -> bool:
        """Take over the newest values of batches in the order of their seqs.

        Args:
            numbers: number of each series of the stream's dictionary.
            now_ms: no sample is newer than this.

        Returns:
            Whether every series had a place.
        """
        complete = True
        for batch in _newest(batches):
            if not self._note_row(batch, numbers, now_ms):
                complete = self._note_each(batch, numbers, now_ms) and complete
        return complete

    def _note_row(self, batch: telemetry_pb2.TelemetryBatch, numbers: Sequence[int], now_ms: int) -> bool:
        """Take over a batch whose samples lie side by side in the columns and are of one moment, as most are: copied
        whole, for a tenth of what each sample by itself costs. False when it is another kind of batch."""
        count = len(batch.values)
        places = list(map(numbers.__getitem__, batch.series))
        first = places[0] if places else DROPPED
        if first == DROPPED or places != list(range(first, first + count)):
            return False
        offset_ms = batch.time_offset_ms[0]
        at_ms = batch.base_time_ms + offset_ms
        row = slice(first, first + count)
        if (
            batch.time_offset_ms != [offset_ms] * count
            or at_ms < max(self._times[row])
            or not rules.is_measurement(sum(batch.values))
        ):
            return False
        self._times[row] = array("q", (min(at_ms, now_ms),)) * count
        self._values[row] = array("d", batch.values)
        return True

    def _note_each(self, batch: telemetry_pb2.TelemetryBatch, numbers: Sequence[int], now_ms: int) -> bool:
        complete = True
        for series, offset_ms, value in zip(batch.series, batch.time_offset_ms, batch.values, strict=True):
            number, at_ms = numbers[series], batch.base_time_ms + offset_ms
            if number == DROPPED:
                complete = complete and not rules.is_measurement(value)
            elif at_ms >= self._times[number] and rules.is_measurement(value):
                self._times[number] = min(at_ms, now_ms)
                self._values[number] = value
        return complete

    def latest(self) -> Iterator[Latest]:
        """Newest sample of each series that has one."""
        for series, at_ms, value in zip(tuple(self._series), tuple(self._times), tuple(self._values), strict=False):
            if at_ms != _NO_SAMPLE:
                yield Latest(series, at_ms, value)

    def payload(self) -> bytes:
        """Newest samples as they are stored: times, then values, by number, little-endian."""
        return b"".join((len(self._times).to_bytes(4, "little"), _little(self._times), _little(self._values)))

    def _restore(self, payload: bytes) -> None:
        if len(payload) < 4:
            return
        count = int.from_bytes(payload[:4], "little")
        if len(payload) != 4 + 16 * count or count > len(self._series):
            return  # not what the server wrote: the next samples replace it
        times, values = array("q"), array("d")
        times.frombytes(payload[4 : 4 + 8 * count])
        values.frombytes(payload[4 + 8 * count :])
        if _BIG_ENDIAN:
            times.byteswap()
            values.byteswap()
        self._times[:count] = times
        self._values[:count] = values


_BIG_ENDIAN = array("H", b"\x00\x01")[0] == 1


def _little(column: array[int] | array[float]) -> bytes:
    if _BIG_ENDIAN:
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _newest(batches: Sequence[telemetry_pb2.TelemetryBatch]) -> Iterator[telemetry_pb2.TelemetryBatch]:
    """Batches in order, without those whose every sample a later one replaces: a stream mostly tells the same series
    again and again, and a spool's backlog thousands of times."""
    newest: list[telemetry_pb2.TelemetryBatch] = []
    later: telemetry_pb2.TelemetryBatch | None = None
    for batch in reversed(batches):
        if (
            later is not None
            and batch.base_time_ms <= later.base_time_ms
            and batch.series == later.series
            and batch.time_offset_ms == later.time_offset_ms
        ):
            continue
        newest.append(batch)
        if rules.is_measurement(sum(batch.values)):
            later = batch
    return reversed(newest)
