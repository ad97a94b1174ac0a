"""The series of one node: their numbers in the database, and the newest value of each, in columns.

Numbers and columns are changed by the flush's worker thread only; other threads may read at any time. Labels come and
go (a process, a disk), so what was not seen for longer than anything is kept gives its number back: no chunk names it
any more.
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import rules
from fleet_server.telemetry.rules import Series

DROPPED = -1
_NO_SAMPLE = 0
_MAX_INTERNED = 200_000
_interned: dict[Series, Series] = {}
_generations = itertools.count(1)


def intern_series(series: Series) -> Series:
    """The one object for a series: nodes of one kind have the same hundred, so a fleet holds them once."""
    if len(_interned) >= _MAX_INTERNED:
        _interned.clear()  # full of what came and went: whoever is still in use comes back
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
        series: by number.
        last_batch_seq: highest batch_seq stored.
        payload: newest samples as `payload()` made them.

    `generation` is another one whenever numbers that were told before may have become another series'; no two objects
    share one.
    """

    __slots__ = (
        "_free",
        "_numbers",
        "_series",
        "_times",
        "_unsaved",
        "_values",
        "expired_at_ms",
        "generation",
        "last_batch_seq",
        "name",
        "newest_ms",
        "saved_at_ms",
    )

    def __init__(self, name: str, series: Mapping[int, Series], last_batch_seq: int, payload: bytes) -> None:
        self.name = name
        self.last_batch_seq = last_batch_seq
        self.saved_at_ms = 0
        self.expired_at_ms = 0
        self.generation = next(_generations)
        self._numbers = {each: number for number, each in series.items()}
        times, values = _columns(payload)
        places = max([len(times), *(number + 1 for number in series)])
        self._series: list[Series | None] = [series.get(number) for number in range(places)]
        self._free = [number for number in range(places - 1, -1, -1) if number not in series]  # the lowest is last
        self._unsaved: list[tuple[int, Series]] = []
        self._times = times + array("q", bytes(8 * (places - len(times))))
        self._values = values + array("d", bytes(8 * (places - len(values))))
        for number in self._free:
            self._times[number] = _NO_SAMPLE
        self.newest_ms = max(self._times, default=0)

    def number(self, series: Series) -> int:
        """Number of a series, a new one if need be; DROPPED past the cap of a node."""
        number = self._numbers.get(series)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._series[number] = series
            elif len(self._series) < rules.MAX_SERIES_PER_NODE:
                number = len(self._series)
                self._times.append(_NO_SAMPLE)
                self._values.append(0.0)
                self._series.append(series)
            else:
                return DROPPED
            self._numbers[series] = number
            self._unsaved.append((number, series))
        return number

    def find(self, series: Series) -> int:
        """Number of a series that has one; DROPPED otherwise."""
        return self._numbers.get(series, DROPPED)

    def take_unsaved(self) -> list[tuple[int, Series]]:
        """Series that were numbered since the last call: they have no row yet."""
        unsaved, self._unsaved = self._unsaved, []
        return unsaved

    def expire(self, before_ms: int) -> list[int]:
        """Forget series without a sample since `before_ms`; their numbers, growing, whose rows have to go. Only while
        none is unsaved."""
        expired: list[int] = []
        for number, at_ms in enumerate(self._times):
            series = self._series[number]
            if series is not None and at_ms < before_ms:
                expired.append(number)
                del self._numbers[series]
                self._series[number] = None
                self._times[number] = _NO_SAMPLE
        if expired:
            self._free = sorted([*self._free, *expired], reverse=True)
            self.generation = next(_generations)
        return expired

    def note(self, newest_first: Iterable[telemetry_pb2.TelemetryBatch], numbers: Sequence[int], now_ms: int) -> bool:
        """Take over the newest values of batches.

        Args:
            newest_first: batches, that with the highest seq first.
            numbers: number of each series of the stream's dictionary.
            now_ms: no sample is newer than this.

        Returns:
            Whether every series had a place.
        """
        complete = True
        for batch in _newest(newest_first):
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
            if at_ms != _NO_SAMPLE and series is not None:
                yield Latest(series, at_ms, value)

    def payload(self) -> bytes:
        """Newest samples as they are stored: times, then values, by number, little-endian."""
        return b"".join((len(self._times).to_bytes(4, "little"), _little(self._times), _little(self._values)))


_BIG_ENDIAN = array("H", b"\x00\x01")[0] == 1


def _columns(payload: bytes) -> tuple[array[int], array[float]]:
    """Times and values of a payload; empty when it is not what the server wrote: the next samples replace it."""
    times, values = array("q"), array("d")
    count = int.from_bytes(payload[:4], "little")
    if len(payload) == 4 + 16 * count and count <= rules.MAX_SERIES_PER_NODE:
        times.frombytes(payload[4 : 4 + 8 * count])
        values.frombytes(payload[4 + 8 * count :])
        if _BIG_ENDIAN:
            times.byteswap()
            values.byteswap()
    return times, values


def _little(column: array[int] | array[float]) -> bytes:
    if _BIG_ENDIAN:
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _newest(newest_first: Iterable[telemetry_pb2.TelemetryBatch]) -> Iterator[telemetry_pb2.TelemetryBatch]:
    """Batches in the order of their seqs, without those whose every sample a later one replaces: a stream mostly tells
    the same series again and again, and a spool's backlog thousands of times."""
    newest: list[telemetry_pb2.TelemetryBatch] = []
    later: telemetry_pb2.TelemetryBatch | None = None
    for batch in newest_first:
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
