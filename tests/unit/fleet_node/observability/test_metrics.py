"""The node's declarations as a whole."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fleet.metrics import Registry
from fleet.v1 import command_pb2
from fleet_node.observability.metrics import FINAL_STATES, STREAM_STATES, NodeMetrics


def test_every_metric_is_named_for_its_side() -> None:
    registry = Registry()
    before = len(registry.specs)
    NodeMetrics(registry)
    assert {spec.name for spec in registry.specs[before:] if not spec.name.startswith("fleet_node_")} == set()


def test_a_scraper_reads_all_of_them_for_each_node_of_a_process() -> None:
    first, second = Registry(), Registry()
    NodeMetrics(first).telemetry.samples.inc(9)
    NodeMetrics(second)
    for registry, samples in ((first, 9), (second, 0)):
        families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
        assert families.keys() == {spec.name.removesuffix("_total") for spec in registry.specs}
        assert families["fleet_node_telemetry_samples"].samples[0].value == samples


def test_a_stream_is_in_one_state() -> None:
    registry = Registry()
    link = NodeMetrics(registry).link
    for state in STREAM_STATES:
        link.stream.set(state)
        families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
        current = [s.labels["state"] for s in families["fleet_node_stream_state"].samples if s.value == 1]
        assert current == [state]


def test_states_are_the_names_on_the_wire() -> None:
    states = {name.removeprefix("COMMAND_STATE_") for name in command_pb2.CommandState.keys()}  # noqa: SIM118
    assert set(FINAL_STATES) < states
