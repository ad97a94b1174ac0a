"""Declarations, handles, caps and exposition of `fleet.metrics`."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fleet.metrics import MAX_LABEL_CHARS, OTHER, Kind, MetricSpec, Registry


def samples(registry: Registry) -> dict[tuple[str, tuple[str, ...]], float]:
    """What a scraper reads: (sample name, label values) to value."""
    families = parse_text(generate_latest(registry).decode())
    return {
        (s.name, tuple(v for _, v in sorted(s.labels.items()))): s.value for family in families for s in family.samples
    }


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"name": "fleet_Streams"}, "lower-case"),
        ({"name": "fleet_streams", "kind": Kind.COUNTER}, "_total"),
        ({"name": "fleet_streams_total"}, "_total"),
        ({"name": "fleet_lag", "unit": "seconds"}, "unit"),
        ({"name": "fleet_lag", "help": "No stop"}, "full stop"),
        ({"name": "fleet_lag", "values": ("a",)}, "one label"),
        ({"name": "fleet_lag", "labels": ("a",), "values": ("a", "b"), "max_series": 1}, "max_series"),
        ({"name": "fleet_lag", "kind": Kind.HISTOGRAM}, "buckets"),
        ({"name": "fleet_lag", "kind": Kind.HISTOGRAM, "buckets": (2.0, 1.0)}, "growing"),
        ({"name": "fleet_lag", "buckets": (1.0,)}, "buckets"),
    ],
)
def test_a_declaration_that_breaks_the_naming_rules_is_refused(spec: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MetricSpec(**{"kind": Kind.GAUGE, "help": "Help.", **spec})  # type: ignore[arg-type]


def test_a_name_is_declared_once() -> None:
    registry = Registry()
    registry.gauge("fleet_x", "X.")
    with pytest.raises(ValueError, match="twice"):
        registry.gauge("fleet_x", "X.")


def test_two_instances_in_one_process_keep_their_own_figures() -> None:
    first, second = Registry(), Registry()
    first.counter("fleet_x_total", "X.").inc(3)
    second.counter("fleet_x_total", "X.")
    assert samples(first)["fleet_x_total", ()] == 3
    assert samples(second)["fleet_x_total", ()] == 0


def test_both_formats_carry_what_was_counted() -> None:
    registry = Registry()
    registry.counter("fleet_sent_bytes_total", "Sent.", unit="bytes").inc(7)
    gauge = registry.gauge("fleet_open", "Open.")
    gauge.set(5)
    gauge.inc()
    gauge.dec(2)
    histogram = registry.histogram("fleet_wait_seconds", "Wait.", buckets=(0.1, 1.0), unit="seconds")
    for wait_s in (0.1, 0.5, 3.0):
        histogram.observe(wait_s)
    read = samples(registry)
    assert read["fleet_sent_bytes_total", ()] == 7
    assert read["fleet_open", ()] == 4
    assert [read["fleet_wait_seconds_bucket", (le,)] for le in ("0.1", "1.0", "+Inf")] == [1, 2, 3]
    assert read["fleet_wait_seconds_sum", ()] == pytest.approx(3.6)
    assert read["fleet_wait_seconds_count", ()] == histogram.count == 3
    units = {family.name: family.unit for family in parse_openmetrics(generate_openmetrics(registry).decode())}
    assert units["fleet_sent_bytes"] == "bytes"
    assert units["fleet_wait_seconds"] == "seconds"


def test_closed_sets_start_at_zero_so_that_the_first_event_shows_as_a_rate() -> None:
    registry = Registry()
    registry.counters("fleet_ends_total", "Ends.", labels=("state",), values=("DONE", "LOST"))
    read = samples(registry)
    assert read["fleet_ends_total", ("DONE",)] == read["fleet_ends_total", ("LOST",)] == 0


def test_a_state_is_one_for_exactly_one_value() -> None:
    registry = Registry()
    state = registry.state("fleet_state", "State.", states=("down", "up"))
    assert samples(registry)["fleet_state", ("down",)] == 1
    state.set("up")
    read = samples(registry)
    assert (read["fleet_state", ("down",)], read["fleet_state", ("up",)]) == (0, 1)


def test_labels_from_a_stranger_cannot_grow_the_registry() -> None:
    registry = Registry()
    family = registry.counters("fleet_refusals_total", "Refusals.", labels=("reason", "where"), max_series=8)
    for number in range(1000):
        family.labels(f"reason-{number}", "stream").inc()
    read = {labels: value for (name, labels), value in samples(registry).items() if name == "fleet_refusals_total"}
    assert len(read) == 9
    assert read[OTHER, OTHER] == 992
    assert samples(registry)["fleet_metrics_label_overflows_total", ()] == 992
    assert family.labels("reason-3", "stream").value == 1, "series from before the cap go on"


def test_a_label_value_as_long_as_a_document_is_not_kept() -> None:
    registry = Registry()
    registry.counters("fleet_x_total", "X.", labels=("reason",)).labels("x" * (MAX_LABEL_CHARS + 1)).inc()
    assert samples(registry)["fleet_x_total", (OTHER,)] == 1


def test_label_values_are_escaped() -> None:
    registry = Registry()
    nasty = 'a"b\\c\nfleet_forged 1'
    registry.gauges("fleet_x", "X.", labels=("reason",)).labels(nasty).set(1)
    read = samples(registry)
    assert read["fleet_x", (nasty,)] == 1
    assert ("fleet_forged", ()) not in read


def test_the_wrong_number_of_label_values_is_a_mistake() -> None:
    family = Registry().counters("fleet_x_total", "X.", labels=("a", "b"))
    with pytest.raises(ValueError, match="labels"):
        family.labels("only one")


def test_a_figure_that_cannot_be_read_is_counted_and_takes_nothing_else_down() -> None:
    registry = Registry()
    gauge = registry.gauge("fleet_x", "X.")

    def fail() -> None:
        raise OSError("gone")

    registry.before_collect(fail)
    registry.before_collect(lambda: gauge.set(4))
    read = samples(registry)
    assert read["fleet_x", ()] == 4
    assert read["fleet_metrics_sampling_errors_total", ()] == 1
