"""A telemetry room on a real database, with real nodes, and the frames that its tests send."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fleet.v1 import admin_pb2, telemetry_pb2
from fleet_server.telemetry.service import TelemetryService, TelemetryStream
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room

RETENTION_S = 3600


@dataclass
class TelemetryRoom:
    """The room under test, its clock, and acks by node id."""

    telemetry: TelemetryService
    neighbours: Room
    clock: MockClock
    acks: dict[str, list[int]] = field(default_factory=dict)

    async def add_node(self, name: str) -> str:
        """A node; its id."""
        return (await self.neighbours.add_node(name)).node_id

    def open_stream(self, node_id: str, epoch: int = 0) -> TelemetryStream:
        """A stream whose acks are noted, of a node that never had one unless its epoch is given."""
        return self.telemetry.open_stream(node_id, epoch, self.acks.setdefault(node_id, []).append)

    def restart(self) -> None:
        """The same database under a new process."""
        self.telemetry.close()
        self.telemetry = service(self.neighbours)

    async def values(self, glob: str = "", *targets: str) -> dict[tuple[str, str], float]:
        """Newest values by node and series name."""
        request = admin_pb2.LatestTelemetryRequest(selector=admin_pb2.Selector(patterns=targets), series_glob=glob)
        found = await self.telemetry.latest(request)
        return {(value.node_name, value.name): value.value for value in found.values}

    async def history(self, node: str, glob: str = "", **window: int) -> dict[str, list[tuple[int, float]]]:
        """Samples by series name."""
        request = admin_pb2.TelemetryHistoryRequest(node=node, series_glob=glob, **window)
        found = await self.telemetry.history(request)
        return {each.name: list(zip(each.at_ms, each.values, strict=True)) for each in found.series}


def service(room: Room) -> TelemetryService:
    """A telemetry service among these neighbours."""
    return TelemetryService(
        database=room.database,
        clock=room.clock,
        nodes=room.nodes,
        metrics=room.metrics.telemetry,
        retention_s=RETENTION_S,
    )


def batch(
    batch_seq: int,
    base_time_ms: int,
    samples: Sequence[tuple[int, int, float]],
    define: Sequence[str] = (),
    first: int = 0,
    **more: int,
) -> bytes:
    """A frame: (series, offset, value) samples, and names to define from number `first` on."""
    definitions = [
        telemetry_pb2.SeriesDefinition(
            series=first + number, name=name, kind=telemetry_pb2.SERIES_KIND_GAUGE, unit="percent", labels={"core": "0"}
        )
        for number, name in enumerate(define)
    ]
    return telemetry_pb2.TelemetryBatch(
        batch_seq=batch_seq,
        base_time_ms=base_time_ms,
        definitions=definitions,
        series=[series for series, _, _ in samples],
        time_offset_ms=[offset for _, offset, _ in samples],
        values=[value for _, _, value in samples],
        **more,
    ).SerializeToString()
