"""Samples as the wire wants them: numbered series and columns of equal length (docs/protocol.md, "Telemetry").

Two numberings: the spool's catalog numbers series for as long as the spool needs them, so that a batch on disk holds
numbers only; each stream has a dictionary of its own that starts at 0, and a series is defined in the first batch of
that stream that uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from fleet.v1 import telemetry_pb2
from fleet_node.drivers.api import Sample

MAX_SPOOLED_BATCH_BYTES: Final = 32 * 1024
"""Largest batch when all its series have to be defined: half a frame, so that no stream has to split it again."""

MAX_NAME_CHARS: Final = 200
MAX_UNIT_CHARS: Final = 32
MAX_LABELS: Final = 16
MAX_LABEL_KEY_CHARS: Final = 64
MAX_LABEL_VALUE_CHARS: Final = 256
MAX_SERIES_PER_STREAM: Final = 65_536
_CROWDED: Final = MAX_SERIES_PER_STREAM - 4096
_BATCH_HEADER_BYTES = 64
_SAMPLE_BYTES = 5 + 5 + 8  # series and offset as varints, value as a double
_FIELD_BYTES = 8  # tag and length of one definition, and of its parts

_KINDS: Final[Mapping[str, telemetry_pb2.SeriesKind.ValueType]] = {
    "gauge": telemetry_pb2.SERIES_KIND_GAUGE,
    "counter": telemetry_pb2.SERIES_KIND_COUNTER,
}


@dataclass(frozen=True, slots=True)
class Series:
    """What names a series. Equal names, labels, kind and unit are the same series.

    Args:
        name: such as "host.cpu.percent".
        labels: pairs sorted by key.
        kind: "gauge" or "counter".
        unit: such as "percent".
    """

    name: str
    labels: tuple[tuple[str, str], ...]
    kind: Literal["gauge", "counter"]
    unit: str

    @classmethod
    def of(cls, sample: Sample) -> Series:
        """The series that a sample belongs to."""
        return cls(sample.name, sample.labels, sample.kind, sample.unit)

    @property
    def allowed(self) -> bool:
        """Within what the wire allows; the server ends a stream over a series that is not."""
        return (
            1 <= len(self.name) <= MAX_NAME_CHARS
            and len(self.unit) <= MAX_UNIT_CHARS
            and len(self.labels) <= MAX_LABELS
            and self.kind in _KINDS
            and all(
                1 <= len(key) <= MAX_LABEL_KEY_CHARS and len(value) <= MAX_LABEL_VALUE_CHARS
                for key, value in self.labels
            )
        )

    def definition(self, number: int) -> telemetry_pb2.SeriesDefinition:
        """How a stream learns of it."""
        return telemetry_pb2.SeriesDefinition(
            series=number, name=self.name, labels=dict(self.labels), kind=_KINDS[self.kind], unit=self.unit
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one moment, small enough for one frame.

    Args:
        base_time_ms: Unix milliseconds on the node.
        series: one per value.
        values: finite.
    """

    base_time_ms: int
    series: tuple[Series, ...]
    values: tuple[float, ...]


def split(samples: Sequence[Sample], at_ms: int, max_bytes: int = MAX_SPOOLED_BATCH_BYTES) -> Iterator[Batch]:
    """Cut samples of one moment into batches of at most `max_bytes`, with every series defined. Samples of a series
    that the wire does not allow are left out."""
    series: list[Series] = []
    values: list[float] = []
    size = _BATCH_HEADER_BYTES
    for sample in samples:
        one = Series.of(sample)
        cost = _definition_bytes(one)
        if not cost:
            continue
        if values and size + cost + _SAMPLE_BYTES > max_bytes:
            yield Batch(at_ms, tuple(series), tuple(values))
            series, values, size = [], [], _BATCH_HEADER_BYTES
        series.append(one)
        values.append(sample.value)
        size += cost + _SAMPLE_BYTES
    if values:
        yield Batch(at_ms, tuple(series), tuple(values))


@lru_cache(maxsize=4096)
def _definition_bytes(series: Series) -> int:
    """Size of its definition; 0 when the wire does not allow it."""
    return series.definition(MAX_SERIES_PER_STREAM).ByteSize() + _FIELD_BYTES if series.allowed else 0


class StreamDictionary:
    """The series that one stream knows, and batches written in its numbers.

    `overflowed` says that it knows as many as it may: samples of further ones are left out until the next stream.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self.overflowed = False

    @property
    def crowded(self) -> bool:
        """Whether it is time for a new stream: what came and went fills this one."""
        return len(self._numbers) >= _CROWDED

    def encode(
        self,
        stored: telemetry_pb2.TelemetryBatch,
        catalog: Mapping[int, Series],
        *,
        dropped_through: int,
        dropped_total: int,
        max_bytes: int,
    ) -> bytes | None:
        """Serialise a spooled batch for this stream, with definitions of what the stream does not know yet.

        None when that takes more than `max_bytes`; the dictionary then stands as before.

        Args:
            stored: batch with the catalog's numbers in its series column; it is changed.
            catalog: series by catalog number; samples of what it lacks are left out.
            dropped_through: batches up to this batch_seq were dropped, 0 when none.
            dropped_total: batches dropped in all.
            max_bytes: largest batch that the stream takes.
        """
        known = len(self._numbers)
        columns = [
            (number, offset_ms, value)
            for catalog_number, offset_ms, value in zip(
                stored.series, stored.time_offset_ms, stored.values, strict=True
            )
            if (number := self._number(catalog_number, catalog, stored)) is not None
        ]
        stored.series[:] = [column[0] for column in columns]
        if len(columns) < len(stored.values):
            stored.time_offset_ms[:] = [column[1] for column in columns]
            stored.values[:] = [column[2] for column in columns]
        stored.dropped_through = dropped_through
        stored.dropped_total = dropped_total
        encoded = stored.SerializeToString()
        if len(encoded) <= max_bytes:
            return encoded
        self._numbers = {number: mine for number, mine in self._numbers.items() if mine < known}
        return None

    def _number(
        self, catalog_number: int, catalog: Mapping[int, Series], stored: telemetry_pb2.TelemetryBatch
    ) -> int | None:
        number = self._numbers.get(catalog_number)
        if number is None:
            series = catalog.get(catalog_number)
            if series is None:
                return None
            if len(self._numbers) >= MAX_SERIES_PER_STREAM:
                self.overflowed = True
                return None
            number = self._numbers[catalog_number] = len(self._numbers)
            stored.definitions.append(series.definition(number))
        return number
