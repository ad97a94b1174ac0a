"""Chunks give back what was packed; thinning keeps order, bounds and ends; hostile frames never get past the checks."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Refusal
from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import chunks, rules
from fleet_server.telemetry.series import NodeSeries

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
    found_numbers, found = chunks.unpack(chunks.pack(numbers, raw))
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
    node = NodeSeries("n", [rules.Series(str(each), (), 1, "") for each in range(known)], 0, b"")
    now_ms = 1_900_000_000_000
    assert node.note([batch], range(known), now_ms)
    assert all(latest.at_ms <= now_ms and rules.is_measurement(latest.value) for latest in node.latest())
    again = NodeSeries("n", [rules.Series(str(each), (), 1, "") for each in range(known)], 0, node.payload())
    assert list(again.latest()) == list(node.latest())


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
