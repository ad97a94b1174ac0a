"""Chunks give back what was packed; thinning keeps order, bounds and ends; hostile frames never get past the checks."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Refusal
from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import chunks, rules
from fleet_server.telemetry.series import DROPPED, NodeSeries

batches = st.builds(
    telemetry_pb2.TelemetryBatch,
    batch_seq=st.integers(0, 2**64 - 1),
    base_time_ms=st.integers(-(2**63), 2**63 - 1),
    series=st.lists(st.integers(0, 5), max_size=4),
    time_offset_ms=st.lists(st.integers(0, 2**32 - 1), max_size=4),
    values=st.lists(st.floats(), max_size=4),
)


@given(st.lists(st.integers(-1, 2**31 - 1), max_size=20), st.lists(batches, max_size=5))
def test_a_chunk_gives_back_what_was_packed(numbers: list[int], told: list[telemetry_pb2.TelemetryBatch]) -> None:
    raw = [batch.SerializeToString() for batch in told]
    found_numbers, found = chunks.unpack(chunks.Packer().pack(numbers, raw))
    assert list(found_numbers) == numbers
    assert [batch.SerializeToString() for batch in found] == raw


@given(st.binary(max_size=200))
def test_bytes_that_are_no_chunk_raise_one_error(payload: bytes) -> None:
    try:
        _, found = chunks.unpack(payload)
        list(found)
    except chunks.ChunkError:
        pass


@given(batches, st.integers(0, 6))
def test_what_passes_the_checks_can_be_noted_and_stored(batch: telemetry_pb2.TelemetryBatch, known: int) -> None:
    try:
        rules.check_columns(batch, known)
    except Refusal:
        return
    node = NodeSeries("n", {each: rules.Series(str(each), (), 1, "") for each in range(known)}, 0, b"")
    now_ms = 1_900_000_000_000
    assert node.note([batch], range(known), now_ms)
    assert all(latest.at_ms <= now_ms and rules.is_measurement(latest.value) for latest in node.latest())
    again = NodeSeries("n", {each: rules.Series(str(each), (), 1, "") for each in range(known)}, 0, node.payload())
    assert list(again.latest()) == list(node.latest())


_ROW = st.builds(
    lambda first, base_ms, offset_ms, values: telemetry_pb2.TelemetryBatch(
        base_time_ms=base_ms,
        series=range(first, first + len(values)),
        time_offset_ms=[offset_ms] * len(values),
        values=values,
    ),
    st.integers(0, 3),
    st.integers(1, 20),
    st.integers(0, 5),
    st.lists(st.floats(), max_size=3),
)
_SCATTERED = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20), st.floats()), max_size=6).map(
    lambda samples: telemetry_pb2.TelemetryBatch(
        series=[series for series, _, _ in samples],
        time_offset_ms=[at_ms for _, at_ms, _ in samples],
        values=[value for _, _, value in samples],
    )
)


@given(st.lists(_ROW | _SCATTERED, max_size=8), st.lists(st.integers(-1, 5), min_size=6, max_size=6))
def test_latest_is_the_newest_measurement_of_each_series_and_never_of_the_future(
    told: list[telemetry_pb2.TelemetryBatch], numbers: list[int]
) -> None:
    now_ms = 15
    newest: dict[int, tuple[int, float]] = {}
    dropped = False
    for batch in told:
        for series, offset_ms, value in zip(batch.series, batch.time_offset_ms, batch.values, strict=True):
            number, at_ms = numbers[series], batch.base_time_ms + offset_ms
            if not rules.is_measurement(value):
                continue
            dropped = dropped or number == DROPPED
            if number != DROPPED and at_ms >= newest.get(number, (0, 0.0))[0]:
                newest[number] = (min(at_ms, now_ms), value)
    node = NodeSeries("n", {}, 0, b"")
    for number in range(6):
        node.number(rules.Series(str(number), (), 1, ""))
    assert node.note(reversed(told), numbers, now_ms) is not dropped
    assert {int(each.series.name): (each.at_ms, each.value) for each in node.latest()} == newest


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.floats(allow_nan=False)), max_size=200),
    st.integers(1, 20),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
def test_thinning_keeps_order_window_and_bound(
    samples: list[tuple[int, float]], most: int, start: int, length: int
) -> None:
    view = rules.Window(start, start + length, most)
    kept = rules.thin(samples, view)
    assert len(kept) <= most
    assert kept == sorted(kept)
    assert set(kept) <= set(samples)
    inside = [sample for sample in samples if start <= sample[0] <= start + length]
    assert bool(kept) == bool(inside)
    if inside:
        assert kept[-1] == max(inside)


@given(st.integers(0, 500), st.integers(2, 50))
def test_spreading_keeps_both_ends(count: int, most: int) -> None:
    kept = rules.spread(range(count), most)
    assert len(kept) == min(count, most)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_any_name_becomes_a_fit_one(name: str, key: str) -> None:
    series = rules.Series(name, (), 1, "")
    assert rules.metric_name(series).isascii()
    assert rules.metric_name(series).isidentifier()
    assert rules.label_name(key).isascii()
    assert rules.label_name(key).isidentifier()
    assert rules.label_name("node") != "node"
