"""The server's declarations as a whole, and that each room's group is separate."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fleet.errors import Reason
from fleet.metrics import OTHER, Registry
from fleet.v1 import command_pb2, gateway_pb2
from fleet_server.observability.metrics import FINAL_STATES, GOAWAY_REASONS, ServerMetrics


def test_every_metric_is_named_for_its_side() -> None:
    registry = Registry()
    before = len(registry.specs)
    ServerMetrics(registry)
    assert {spec.name for spec in registry.specs[before:] if not spec.name.startswith("fleet_server_")} == set()


def test_a_scraper_reads_all_of_them() -> None:
    registry = Registry()
    ServerMetrics(registry)
    read = {family.name for family in text_string_to_metric_families(generate_latest(registry).decode())}
    assert read == {spec.name.removesuffix("_total") for spec in registry.specs}


def test_label_values_are_the_names_on_the_wire() -> None:
    states = {name.removeprefix("COMMAND_STATE_") for name in command_pb2.CommandState.keys()}  # noqa: SIM118
    reasons = {name.removeprefix("GOAWAY_REASON_") for name in gateway_pb2.GoawayReason.keys()}  # noqa: SIM118
    assert set(FINAL_STATES) == states - {"UNSPECIFIED", "QUEUED", "SENT", "ACCEPTED", "RUNNING"}
    assert set(GOAWAY_REASONS) == reasons - {"UNSPECIFIED"}


def test_every_refusal_reason_fits_under_the_caps() -> None:
    metrics = ServerMetrics(Registry())
    for reason in Reason:
        metrics.sessions.handshakes.labels(reason).inc()
        metrics.streams.closes.labels(reason).inc()
        for where in ("enroll", "handshake", "stream", "issue"):
            metrics.streams.refusals.labels(reason, where).inc()
    for family in (metrics.sessions.handshakes, metrics.streams.closes, metrics.streams.refusals):
        assert not [values for values, _ in family.items() if OTHER in values]
