"""Columns and dictionaries."""

import pytest

from fleet.v1 import telemetry_pb2
from fleet_node.drivers.api import Sample
from fleet_node.telemetry.encoder import MAX_LABEL_VALUE_CHARS, Series, StreamDictionary, split

CATALOG = {number: Series(f"s{number}", (("n", str(number)),), "counter", "bytes") for number in range(1, 200)}


def stored(*numbers: int) -> telemetry_pb2.TelemetryBatch:
    return telemetry_pb2.TelemetryBatch(
        batch_seq=9, base_time_ms=5, series=numbers, time_offset_ms=[0] * len(numbers), values=numbers
    )


def encode(dictionary: StreamDictionary, batch: telemetry_pb2.TelemetryBatch, max_bytes: int = 65536) -> bytes | None:
    return dictionary.encode(batch, CATALOG, dropped_through=3, dropped_total=2, max_bytes=max_bytes)


def decode(data: bytes | None) -> telemetry_pb2.TelemetryBatch:
    assert data is not None
    return telemetry_pb2.TelemetryBatch.FromString(data)


def test_a_series_is_defined_once_a_stream_and_numbered_from_zero() -> None:
    dictionary = StreamDictionary()

    first = decode(encode(dictionary, stored(7, 5)))
    second = decode(encode(dictionary, stored(5, 9, 7)))

    assert list(first.series) == [0, 1]
    assert [(one.series, one.name) for one in first.definitions] == [(0, "s7"), (1, "s5")]
    assert dict(first.definitions[0].labels) == {"n": "7"}
    assert first.definitions[0].kind == telemetry_pb2.SERIES_KIND_COUNTER
    assert list(second.series) == [1, 2, 0]
    assert [one.name for one in second.definitions] == ["s9"]
    assert list(second.values) == [5, 9, 7]
    assert (second.dropped_through, second.dropped_total, second.batch_seq) == (3, 2, 9)


def test_a_batch_that_does_not_fit_defines_nothing() -> None:
    dictionary = StreamDictionary()

    assert encode(dictionary, stored(*range(1, 100)), max_bytes=500) is None

    assert [one.series for one in decode(encode(dictionary, stored(4))).definitions] == [0]


def test_a_stream_that_knows_as_many_series_as_it_may_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_node.telemetry.encoder.MAX_SERIES_PER_STREAM", 2)
    dictionary = StreamDictionary()
    assert list(decode(encode(dictionary, stored(1, 2))).values) == [1, 2]
    assert not dictionary.overflowed
    assert list(decode(encode(dictionary, stored(1, 2, 3))).values) == [1, 2]
    assert dictionary.overflowed


def test_samples_of_a_series_that_the_catalog_lacks_are_left_out() -> None:
    batch = decode(encode(StreamDictionary(), stored(4, 5000, 6)))

    assert list(batch.values) == [4, 6]
    assert list(batch.series) == [0, 1]
    assert len(batch.time_offset_ms) == 2


def test_a_split_keeps_every_batch_below_the_limit_with_all_series_defined() -> None:
    samples = [Sample(f"metric.{n}", (("label", "v" * (n % 50)),), "gauge", "1", float(n)) for n in range(2000)]

    batches = list(split(samples, 7, max_bytes=4096))

    assert [value for batch in batches for value in batch.values] == [float(n) for n in range(2000)]
    for batch in batches:
        catalog = dict(enumerate(batch.series))
        full = telemetry_pb2.TelemetryBatch(
            batch_seq=2**62,
            base_time_ms=2**41,
            series=catalog,
            time_offset_ms=[0] * len(catalog),
            values=batch.values,
        )
        limit = {"dropped_through": 2**62, "dropped_total": 2**40, "max_bytes": 4096}
        assert StreamDictionary().encode(full, catalog, **limit) is not None


def test_series_that_the_wire_does_not_allow_are_left_out() -> None:
    good = Sample("good", (), "gauge", "1", 1.0)
    bad = [
        Sample("", (), "gauge", "1", 2.0),
        Sample("x" * 201, (), "gauge", "1", 2.0),
        Sample("x", (), "gauge", "u" * 33, 2.0),
        Sample("x", tuple((f"k{n:02}", "v") for n in range(17)), "gauge", "1", 2.0),
        Sample("x", (("k", "v" * (MAX_LABEL_VALUE_CHARS + 1)),), "gauge", "1", 2.0),
        Sample("x", (), "histogram", "1", 2.0),  # type: ignore[arg-type]
    ]

    (batch,) = split([*bad, good, *bad], 7)

    assert batch.values == (1.0,)
