"""What servers stored goes out once, in order, through receivers that are slow, away or refuse; one process does it."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.exc import ProgrammingError

from fleet.errors import Reason, Refusal
from fleet.metrics import Registry
from fleet_server import bootstrap
from fleet_server.config import Settings
from fleet_server.database import migrate
from fleet_server.database.engine import Database
from fleet_server.exporter import origins
from fleet_server.observability.metrics import ExportMetrics
from fleet_server.telemetry import export, flushing
from fleet_server.telemetry.chunks import Packer
from fleet_server.telemetry.export import Exporter
from fleet_server.telemetry.export_rules import WINDOW_S, Answer, Standing
from fleet_server.telemetry.stream import TelemetryStream
from tests.fakes.clock import MockClock
from tests.fakes.postgres import PostgresServer
from tests.fakes.watch import Watch
from tests.unit.fleet_server.telemetry.room import RETENTION_S, TelemetryRoom, batch

PAGE = Path(__file__).parents[4] / "docs" / "operations" / "telemetry.md"
TAKEN = Answer(Standing.TAKEN)
Store = Callable[[float], Awaitable[None]]


class FakeSink:
    """Takes what comes, and answers as told; TAKEN when nothing was told."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.values: list[float] = []
        self.requests: list[ExportMetricsServiceRequest] = []
        self.calls = 0
        self._watch = Watch()
        self._loop = asyncio.get_running_loop()

    def send(self, request: ExportMetricsServiceRequest) -> Answer:
        self.calls += 1
        answer = self.answers.pop(0) if self.answers else TAKEN
        if answer.standing is Standing.TAKEN:
            self.requests.append(request)
            self.values += values(request)
        self._loop.call_soon_threadsafe(self._watch.changed)
        return answer

    def close(self) -> None:
        """Nothing is open."""

    async def wait(self, predicate: Callable[[], bool]) -> None:
        await self._watch.wait_until(predicate, lambda: f"{self.values} after {self.calls} calls", 10.0)


def values(request: ExportMetricsServiceRequest) -> list[float]:
    return [
        point.as_double
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in (*metric.gauge.data_points, *metric.sum.data_points)
    ]


class Running:
    """An exporter that runs, its receiver and its figures."""

    def __init__(self, database: Database, clock: MockClock, holder: str, backfill_ms: int = 0) -> None:
        self.sink = FakeSink()
        self.metrics = ExportMetrics(Registry())
        self.exporter = Exporter(
            database=database,
            clock=clock,
            sink=self.sink,
            metrics=self.metrics,
            describe=origins,
            holder=holder,
            cluster="main",
            backfill_ms=backfill_ms,
        )
        self.task = asyncio.create_task(self.exporter.run())

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def running(room: TelemetryRoom, holder: str = "one", backfill_ms: int = 0) -> AsyncIterator[Running]:
    one = Running(room.neighbours.database, room.clock, holder, backfill_ms)
    try:
        yield one
    finally:
        await one.end()


@pytest.fixture
async def store(room: TelemetryRoom) -> Store:
    """Stores one sample of a node's series, as its stream would."""
    node = await room.add_node("n1")
    opened = room.open_stream(node)
    seq = iter(range(1, 1000))

    async def store(value: float) -> None:
        number = next(seq)
        define = ["cpu"] if number == 1 else []
        opened.ingest_nowait(batch(number, room.clock.now_ms() - 5, [(0, 0, value)], define))
        await room.telemetry.flush()

    return store


async def looks(room: TelemetryRoom, times: int = 1, sleepers: int = 2) -> None:
    """Let the exporter look again."""
    for _ in range(times):
        await room.clock.wait_sleepers(sleepers)
        await room.clock.advance(export.LOOK_S)
    await room.clock.wait_sleepers(sleepers)


async def test_what_is_stored_goes_out_as_metrics_of_its_node(room: TelemetryRoom, store: Store) -> None:
    await store(0.5)  # before the export began
    async with running(room) as one:
        await looks(room)
        await store(1.5)
        await looks(room)
        await one.sink.wait(lambda: one.sink.values == [1.5])
        (resource,) = one.sink.requests[0].resource_metrics
        attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
        assert attributes["service.name"] == "fleet-node"
        assert attributes["service.instance.id"] == "n1"
        assert attributes["fleet.cluster"] == "main"
        (metric,) = resource.scope_metrics[0].metrics
        assert (metric.name, metric.unit) == ("cpu", "percent")
        (point,) = metric.gauge.data_points
        assert [(each.key, each.value.string_value) for each in point.attributes] == [("core", "0")]
        assert one.metrics.samples.value == 1


async def test_it_begins_so_far_back_as_it_is_told(room: TelemetryRoom, store: Store) -> None:
    await store(1.0)
    await room.clock.advance(600)
    await store(2.0)
    async with running(room, backfill_ms=60_000) as one:
        await looks(room)
        await one.sink.wait(lambda: one.sink.values == [2.0])


async def test_a_receiver_that_is_away_gets_it_all_later_in_order(room: TelemetryRoom, store: Store) -> None:
    async with running(room) as one:
        await looks(room)
        one.sink.answers = [Answer(Standing.LATER, "HTTP 503"), Answer(Standing.SETUP, "HTTP 401"), TAKEN]
        await store(1.0)
        await room.clock.advance(export.LOOK_S)
        await one.sink.wait(lambda: one.sink.calls == 1)
        await store(2.0)
        assert one.exporter.lag_s() > 0
        while not one.sink.values:
            await room.clock.wait_sleepers(2)
            await room.clock.advance(1.0)
        await looks(room, 2)
        await one.sink.wait(lambda: one.sink.values == [1.0, 2.0])
        await looks(room)
        assert one.exporter.lag_s() == 0
        assert one.metrics.requests.labels("later").value == 1
        assert one.metrics.requests.labels("setup").value == 1


async def test_what_a_receiver_refuses_for_good_holds_up_nothing(room: TelemetryRoom, store: Store) -> None:
    async with running(room) as one:
        await looks(room)
        one.sink.answers = [Answer(Standing.REFUSED, "HTTP 400 out of bounds")]
        await store(1.0)
        await looks(room)
        await one.sink.wait(lambda: one.sink.calls == 1)
        await store(2.0)
        await looks(room)
        await one.sink.wait(lambda: one.sink.values == [2.0])
        assert (one.metrics.samples.value, one.metrics.rejected.value) == (1, 1)


async def test_after_a_crash_nothing_is_missing_and_what_was_settled_stays_away(
    room: TelemetryRoom, store: Store
) -> None:
    async with running(room) as one:
        await looks(room)
        await store(1.0)
        await looks(room, int(WINDOW_S) + 15)
        await store(2.0)
        await looks(room, 4)
        await one.sink.wait(lambda: one.sink.values == [1.0, 2.0])
    await store(3.0)
    async with running(room, "two") as two:
        await looks(room, int(export.SILENT_S) + 1, sleepers=1)
        await looks(room, 2)
        await two.sink.wait(lambda: two.sink.values == [2.0, 3.0])


async def test_a_second_process_waits_while_the_first_lives_and_goes_on_when_it_left(
    room: TelemetryRoom, store: Store
) -> None:
    async with running(room) as one:
        await looks(room)
        async with running(room, "two") as two:
            await store(1.0)
            await looks(room, 2 * int(export.SILENT_S), sleepers=3)
            assert "another process exports" in two.exporter.doing
            await one.end()
            await one.exporter.release()
            await looks(room, 2, sleepers=1)
            await room.clock.wait_sleepers(2)
            await store(2.0)
            await looks(room, 2)
            await two.sink.wait(lambda: two.sink.values[-1:] == [2.0])
        assert one.sink.values == [1.0]


async def test_one_that_was_replaced_says_so_and_ends(room: TelemetryRoom) -> None:
    async with running(room) as one:
        await looks(room)
        await room.neighbours.tamper("UPDATE telemetry_exports SET holder = 'two'")
        await room.clock.advance(export.BEAT_S)
        with pytest.raises(ExceptionGroup) as caught:
            await one.task
        (refusal,) = caught.value.exceptions
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.CONFLICT


async def test_a_damaged_chunk_is_left_out_and_counted(room: TelemetryRoom, store: Store) -> None:
    async with running(room) as one:
        await looks(room)
        await store(1.0)
        await room.neighbours.tamper("UPDATE telemetry_chunks SET payload = ?", b"what is no chunk")
        await store(2.0)
        await looks(room)
        await one.sink.wait(lambda: one.sink.values == [2.0])
        assert one.metrics.unreadable.value == 1


async def test_a_number_that_names_another_series_by_now_is_not_taken_for_the_old_one(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing, "LONGEST_CHUNK_MS", 0)
    node = await room.add_node("n1")

    async def tell(stream: TelemetryStream, seq: int, name: str) -> None:
        stream.ingest_nowait(batch(seq, room.clock.now_ms(), [(0, 0, float(seq))], [name]))
        await room.telemetry.flush()

    def names(one: Running) -> list[str]:
        return [request.resource_metrics[0].scope_metrics[0].metrics[0].name for request in one.sink.requests]

    async with running(room) as one:
        await looks(room)
        first = room.open_stream(node)
        await tell(first, 1, "old")
        await looks(room)
        await one.sink.wait(lambda: names(one) == ["old"])
        first.close()
        await room.clock.advance(RETENTION_S + 1)
        await tell(room.open_stream(node), 2, "new")
        assert await room.neighbours.query("SELECT series_no, name FROM telemetry_series") == [(0, "new")]
        await looks(room)
        await one.sink.wait(lambda: names(one) == ["old", "new"])


async def test_no_more_is_held_at_once_than_is_allowed_and_all_of_it_goes_out(
    room: TelemetryRoom, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BYTES_AT_ONCE", 1)
    for value in range(1, 6):
        await store(float(value))
    async with running(room, backfill_ms=3_600_000) as one:
        await looks(room)
        await one.sink.wait(lambda: one.sink.values == [1.0, 2.0, 3.0, 4.0, 5.0])
        assert [len(values(request)) for request in one.sink.requests] == [1] * 5


async def test_what_stands_where_another_chunk_was_lost_goes_out_too(room: TelemetryRoom, store: Store) -> None:
    async with running(room) as one:
        await looks(room)
        await store(1.0)
        await looks(room)
        await one.sink.wait(lambda: one.sink.values == [1.0])
        [(position,)] = await room.neighbours.query("SELECT position FROM telemetry_chunks")
        await room.neighbours.tamper("DELETE FROM telemetry_chunks")  # by a failover to a standby that lacked it
        await store(2.0)
        await room.neighbours.tamper("UPDATE telemetry_chunks SET position = ?", position)
        await looks(room, int(export.STRAGGLERS_S) + 1)
        await one.sink.wait(lambda: one.sink.values == [1.0, 2.0])


async def test_the_database_user_that_the_page_makes_can_export_and_sees_nothing_secret(
    postgres: PostgresServer, postgres_url: str, clock: MockClock, tmp_path: Path
) -> None:
    migrate.upgrade(postgres_url)
    url = make_url(postgres_url)
    found = re.search(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    with psycopg.connect(postgres.plain_url(str(url.database)), autocommit=True) as admin:
        for statement in filter(str.strip, found[1].split(";")):
            admin.execute(statement.encode())
        try:
            admin.execute(
                "INSERT INTO telemetry_series (node_id, series_no, name, labels, kind, unit)"
                " VALUES ('n', 0, 'cpu', '{}', 1, '')"
            )
            admin.execute(
                "INSERT INTO telemetry_chunks (node_id, start_ms, end_ms, samples, payload)"
                " VALUES ('n', %s, %s, 1, %s)",
                (clock.now_ms(), clock.now_ms(), Packer().pack([0], [batch(1, clock.now_ms(), [(0, 0, 1.0)])])),
            )
            its_url = url.set(username="fleet_export").render_as_string(hide_password=False)
            settings = Settings(database_url=SecretStr(its_url), data_dir=tmp_path / "none")
            bootstrap.require_schema(settings)
            database = Database(its_url, readers=1)
            database.start()
            one = Running(database, clock, "one", backfill_ms=1)
            await one.sink.wait(lambda: one.sink.values == [1.0])
            await clock.wait_sleepers(2)
            await clock.advance(export.BEAT_S)
            await clock.wait_sleepers(2)
            await one.end()
            await one.exporter.release()
            with pytest.raises(ProgrammingError, match="permission denied"):
                await database.read(lambda conn: conn.exec_driver_sql("SELECT * FROM operators").all())
            await database.close()
            assert admin.execute("SELECT holder, beat FROM telemetry_exports").fetchall() == [("", 3)]
            assert not (tmp_path / "none").exists()
        finally:
            admin.execute("DROP OWNED BY fleet_export; DROP ROLE fleet_export")


async def test_positions_that_begin_anew_are_followed(room: TelemetryRoom, store: Store) -> None:
    async with running(room) as one:
        await looks(room)
        await store(1.0)
        await looks(room, int(WINDOW_S) + 15)
        await room.neighbours.tamper("UPDATE telemetry_exports SET position = position + 100")
        await one.end()
    async with running(room, "two") as two:
        await looks(room, int(export.SILENT_S) + 2, sleepers=1)
        await looks(room, 2)
        await store(2.0)
        await looks(room, 2)
        await two.sink.wait(lambda: two.sink.values == [2.0])
