"""What a receiver never takes of one node holds up nothing, and costs no other node a sample; what is broken is waited
for."""

from collections.abc import Callable

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from fleet.metrics import Registry
from fleet.v1 import telemetry_pb2
from fleet_server.observability.metrics import ExportMetrics
from fleet_server.telemetry.export_rules import Answer, Standing
from fleet_server.telemetry.export_sending import FAULTS, Sender
from fleet_server.telemetry.otlp import Origin, RequestBuilder
from fleet_server.telemetry.rules import Series
from tests.fakes.clock import MockClock

NODES = [f"n{number}" for number in range(9)]
SIGN_OF_LIFE = "fleet-export"


class HastyClock(MockClock):
    """Sleeps no longer than it takes to note it."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Receiver:
    """Answers as it judges the names in a request."""

    def __init__(self, judge: Callable[[list[str]], Standing]) -> None:
        self.judge = judge
        self.taken: list[str] = []
        self.asked = 0

    def send(self, request: ExportMetricsServiceRequest) -> Answer:
        self.asked += 1
        names = [
            {each.key: each.value.string_value for each in resource.resource.attributes}
            for resource in request.resource_metrics
        ]
        shown = [found.get("service.instance.id", found["service.name"]) for found in names]
        standing = self.judge(shown)
        if standing is Standing.TAKEN:
            self.taken += [name for name in shown if name != SIGN_OF_LIFE]
        return Answer(standing, "its words")

    def close(self) -> None:
        """Nothing is open."""


class Sending:
    """A sender, its receiver and its clock."""

    def __init__(self, judge: Callable[[list[str]], Standing]) -> None:
        self.clock = HastyClock()
        self.receiver = Receiver(judge)
        self.metrics = ExportMetrics(Registry())
        self._sender = Sender(sink=self.receiver, clock=self.clock, metrics=self.metrics, cluster="main")

    async def send(self, names: list[str]) -> None:
        builder = RequestBuilder("main")
        series = {0: Series("cpu", (), telemetry_pb2.SERIES_KIND_GAUGE, "")}
        batch = telemetry_pb2.TelemetryBatch(base_time_ms=1000, series=[0], time_offset_ms=[0], values=[1.0])
        for name in names:
            assert not list(builder.add(Origin(f"id-{name}", name), series, [0], [batch], 2000))
        (request,) = builder.rest()
        await self._sender.send(request)
        assert not self._sender.trouble


def without(name: str, standing: Standing) -> Callable[[list[str]], Standing]:
    return lambda names: standing if name in names else Standing.TAKEN


@pytest.mark.parametrize("standing", [Standing.REFUSED, Standing.FAULT])
@pytest.mark.parametrize("bad", ["n0", "n4", "n8"])
async def test_what_one_node_sent_costs_no_other_node_a_sample(standing: Standing, bad: str) -> None:
    one = Sending(without(bad, standing))
    await one.send(NODES)
    assert sorted(one.receiver.taken) == [name for name in NODES if name != bad]
    assert (one.metrics.samples.value, one.metrics.rejected.value) == (8, 1)


async def test_what_is_never_taken_holds_up_nothing_though_nothing_else_is_there_to_be_taken() -> None:
    one = Sending(without("n0", Standing.FAULT))
    await one.send(["n0"])
    assert len(one.clock.slept) == FAULTS - 1
    await one.send(["n0"])
    await one.send(["n0", "n1"])
    assert len(one.clock.slept) == FAULTS - 1  # by now it is known to say so of what it does not want
    assert one.receiver.taken == ["n1"]


async def test_a_receiver_that_fails_at_everything_is_waited_for() -> None:
    one = Sending(lambda _: Standing.TAKEN if one.receiver.asked > 50 else Standing.FAULT)
    await one.send(NODES)
    assert one.receiver.taken == NODES
    assert one.metrics.rejected.value == 0
    assert len(one.clock.slept) == 25


async def test_a_receiver_that_failed_for_a_moment_is_sent_the_same_again() -> None:
    one = Sending(lambda _: Standing.FAULT if one.receiver.asked == 1 else Standing.TAKEN)
    await one.send(NODES)
    assert one.receiver.taken == NODES
    assert one.metrics.rejected.value == 0
