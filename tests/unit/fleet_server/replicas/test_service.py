"""Replicas over both databases: beats, the dead, and requests to drain."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from structlog.testing import capture_logs

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2
from fleet_server.database import clock as database_clock
from fleet_server.database.replica_schema import REVISION
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.replicas.fence import Fence
from fleet_server.replicas.rules import ReplicaRecord, ReplicaState, Vitals
from fleet_server.replicas.service import ReplicaService
from tests.fakes.clock import MockClock
from tests.fakes.streams import take_stream
from tests.unit.fleet_server.sessions.world import World


class Replica(ReplicaService):
    """One process; `gone` lists the replicas whose nodes it was told to show offline."""

    def __init__(
        self,
        world: World,
        replica_id: str,
        clock: object = None,
        wakeup: Wakeup | None = None,
        tls_cas: Callable[[], Sequence[bytes]] = tuple,
        place: str = "here",
    ) -> None:
        self.gone: list[str] = []
        self.returns = 0
        self.returning: Refusal | None = None
        timed: Clock = clock or world.clock  # type: ignore[assignment]
        self.fence = Fence(database=world.database, clock=timed, replica_id=replica_id, place=place, version="1.0")
        super().__init__(
            database=world.database,
            clock=timed,
            fence=self.fence,
            wakeup=wakeup or world.wakeup,
            audit=world.audit,
            replica_id=replica_id,
            version="1.0",
            vitals=lambda: Vitals(streams=7, max_streams=100, admission_per_s=250.0),
            on_lost=lambda _, lost: self.gone.append(lost),
            on_return=self._return,
            tls_cas=tls_cas,
        )

    async def _return(self) -> None:
        if self.returning is not None:
            raise self.returning
        self.returns += 1


async def ready(world: World, replica_id: str, **fields: object) -> Replica:
    replica = Replica(world, replica_id, **fields)  # type: ignore[arg-type]
    await replica.fence.take()
    await replica.register()
    await replica.set_state(ReplicaState.READY)
    return replica


async def look_on(replica: Replica, clock: MockClock) -> None:
    """Have it see, beat by beat, that others stand still for too long."""
    for _ in range(6):
        await clock.advance(2)
        await replica.beat()


async def refused(work: object) -> Reason:
    with pytest.raises(Refusal) as caught:
        await work  # type: ignore[misc]
    return caught.value.reason


async def test_who_says_of_no_tls_ca_that_it_shows_a_certificate_of_it(world: World, clock: MockClock) -> None:
    shown: list[bytes] = []
    one, two = await ready(world, "r1"), await ready(world, "r2", tls_cas=lambda: shown)

    async def missing(ca: bytes) -> Sequence[str]:
        return await world.database.read(lambda conn: one.without_tls_ca(conn, ca))

    assert await missing(b"ca") == ["r2"]
    shown += [b"other", b"ca"]
    await two.beat()
    assert await missing(b"ca") == []
    assert await missing(b"c") == ["r2"]
    assert await world.database.read(lambda conn: two.without_tls_ca(conn, b"ca")) == ["r1"]
    await two.set_state(ReplicaState.DRAINING)
    assert await missing(b"c") == [], "it takes nobody any more"


async def test_register_and_beat(world: World, clock: MockClock) -> None:
    replica = Replica(world, "r1")
    await replica.fence.take()
    await replica.register()
    assert replica.gone == ["r1"]  # what an earlier process of this id left behind
    await replica.set_state(ReplicaState.READY)
    await clock.advance(2)
    await replica.beat()
    [shown] = await replica.list()
    assert (shown.state, shown.streams, shown.admission_per_s) == (ReplicaState.READY, 7, 250.0)
    assert shown.heartbeat_at_ms == clock.now_ms()


@pytest.mark.parametrize("reason", [gateway_pb2.GOAWAY_REASON_REVOKED, gateway_pb2.GOAWAY_REASON_SUPERSEDED, 99, -1])
async def test_a_replica_drains_for_no_reason_that_speaks_of_one_node(world: World, reason: int) -> None:
    replica = await ready(world, "r1")
    assert await refused(replica.request_drain("rel", "", 10, reason)) is Reason.INVALID_ARGUMENT


async def test_the_dead_are_noticed_once(world: World, clock: MockClock) -> None:
    a, b = await ready(world, "a"), await ready(world, "b")
    for _ in range(4):
        await a.beat()
        await clock.advance(2)
    assert (await a.get("b")).state is ReplicaState.READY
    for _ in range(3):
        await a.beat()
        await clock.advance(2)
    assert (await a.get("b")).state is ReplicaState.LOST
    assert a.gone.count("b") == 1
    assert (await world.audited()).count("replica.lost") == 1
    await b.beat()
    assert (await a.get("b")).state is ReplicaState.READY


async def test_nobody_is_taken_for_dead_for_a_time_in_which_nobody_could_look(world: World, clock: MockClock) -> None:
    """The database was away, or the one that looks stood still: it finds the others as they were then."""
    a, b = await ready(world, "a"), await ready(world, "b")
    for _ in range(3):
        await a.beat()
        await clock.advance(2)
    await clock.advance(60)
    await a.beat()
    assert (await a.get("b")).state is ReplicaState.READY
    await b.beat()
    await look_on(a, clock)
    assert (await a.get("b")).state is ReplicaState.LOST


async def test_a_database_that_takes_no_writes_is_no_sign_that_others_are_dead(
    world: World, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = await ready(world, "a"), await ready(world, "b")

    async def refuse(work: object) -> None:
        raise Refusal(Reason.UNAVAILABLE, "it is read only")

    await a.beat()
    with monkeypatch.context() as read_only:
        read_only.setattr(world.database, "write", refuse)
        for _ in range(8):
            await clock.advance(2)
            assert await refused(a.beat()) is Reason.UNAVAILABLE
    await clock.advance(2)
    await a.beat()
    assert (await a.get("b")).state is ReplicaState.READY


async def test_a_wrong_wall_clock_kills_nobody(world: World, clock: MockClock) -> None:
    a = await ready(world, "a")
    b = await ready(world, "b", clock=clock.seen_by(-3_600_000))
    for _ in range(10):
        await a.beat()
        await b.beat()
        await clock.advance(2)
    assert {replica.state for replica in await a.list()} == {ReplicaState.READY}


async def test_a_drain_request_reaches_its_replica(world: World, clock: MockClock) -> None:
    a, b = await ready(world, "a"), await ready(world, "b")
    running = asyncio.create_task(b.run())
    waiting = asyncio.create_task(b.wait_drain_requested())
    await clock.wait_sleepers(1)
    await a.request_drain("ada", "b", 30, gateway_pb2.GOAWAY_REASON_UPGRADE)
    request = await asyncio.wait_for(waiting, 10)  # woken, without the clock moving
    assert (request.deadline_s, request.reason) == (30.0, gateway_pb2.GOAWAY_REASON_UPGRADE)
    await a.request_drain("ada", "b", 5, gateway_pb2.GOAWAY_REASON_UPGRADE)
    again = await asyncio.wait_for(b.wait_drain_requested(), 10)
    assert again.deadline_s == 5.0
    running.cancel()
    assert "replica.drain_requested" in await world.audited()


async def test_a_lost_wake_up_costs_one_beat(world: World) -> None:
    a, b = await ready(world, "a"), await ready(world, "b", wakeup=Wakeup())
    await a.request_drain("ada", "b", 0, gateway_pb2.GOAWAY_REASON_DRAIN)
    await b.beat()
    assert (await b.wait_drain_requested()).deadline_ms == 0


async def test_who_is_told_to_drain_while_it_starts_is_not_left_running(world: World) -> None:
    other, starting = await ready(world, "a"), Replica(world, "b")
    await starting.fence.take()
    await other.request_drain("ada", "b", 30, gateway_pb2.GOAWAY_REASON_UPGRADE)
    await starting.register()
    await starting.set_state(ReplicaState.READY)
    await starting.beat()
    assert (await asyncio.wait_for(starting.wait_drain_requested(), 10)).deadline_s == 30.0


async def test_a_new_process_of_the_same_id_forgets_the_drain(world: World) -> None:
    a = await ready(world, "a")
    await a.request_drain("ada", "", 0, gateway_pb2.GOAWAY_REASON_RESTART, force=True)
    again = await ready(world, "a")
    await again.beat()
    assert (await again.get("")).drain is None


async def test_who_follows_the_drain_of_one_that_starts_takes_it_for_the_same_process(
    world: World, clock: MockClock
) -> None:
    """Or it was told to have ended when it registered, before it began to drain."""
    a, before = await ready(world, "a"), await ready(world, "b")
    drain = gateway_pb2.GOAWAY_REASON_DRAIN
    of_before = await a.request_drain("ada", "b", 20, drain)
    b = Replica(world, "b")
    await clock.advance(1)
    await b.fence.take()
    assert (await a.get("b")).drain is None
    asked = await a.request_drain("ada", "b", 30, drain)
    await clock.advance(1)
    await b.register()
    await b.set_state(ReplicaState.READY)
    await b.beat()
    assert (await asyncio.wait_for(b.wait_drain_requested(), 10)).deadline_s == 30.0
    shown = await before.get("b")
    assert shown.started_at_ms == asked.started_at_ms > of_before.started_at_ms


async def test_what_cannot_be_drained(world: World) -> None:
    a, b = await ready(world, "a"), await ready(world, "b")
    await b.set_state(ReplicaState.STOPPED)
    drain = gateway_pb2.GOAWAY_REASON_DRAIN
    assert await refused(a.request_drain("ada", "nobody", 0, drain)) is Reason.NOT_FOUND
    assert await refused(a.request_drain("ada", "b", 0, drain)) is Reason.CONFLICT
    assert await refused(a.request_drain("ada", "a", -1, drain)) is Reason.INVALID_ARGUMENT


async def test_only_ready_replicas_take_over(world: World) -> None:
    a = await ready(world, "a")
    assert (await a.pace(7)).per_s == 0
    b = await ready(world, "b")
    assert (await a.pace(7)).per_s == 250.0
    await b.set_state(ReplicaState.DRAINING)
    assert (await a.pace(7)).per_s == 0


async def test_what_was_seen_long_ago_is_no_ground_to_act_on(world: World, clock: MockClock) -> None:
    """The database is away for this replica alone: what the others hold has changed meanwhile."""
    a, _ = await ready(world, "a"), await ready(world, "b")
    assert not a.seen_lately()
    await a.beat()
    assert [replica.replica_id for replica in a.seen_lately()] == ["a", "b"]
    await clock.advance(6)
    assert not a.seen_lately()


async def test_the_last_replica_that_takes_nodes_is_drained_by_force_alone(world: World) -> None:
    """Two people drain both at once: the second of them is told."""
    a, _ = await ready(world, "a"), await ready(world, "b")
    drain = gateway_pb2.GOAWAY_REASON_DRAIN
    await a.request_drain("ada", "a", 30, drain)
    with pytest.raises(Refusal, match=r"no replica but b takes nodes.*--force") as refused_last:
        await a.request_drain("bob", "b", 30, drain)
    assert refused_last.value.reason is Reason.CONFLICT
    assert (await a.get("b")).drain is None
    await a.request_drain("ada", "a", 5, drain)  # one that drains already is only shortened
    await a.request_drain("bob", "b", 30, drain, force=True)


async def test_a_drains_deadline_is_no_matter_of_clocks(world: World, clock: MockClock) -> None:
    """Whoever was asked has a clock that is an hour ahead, and the replica that drains keeps its own time."""
    ahead = MockClock(start_ms=clock.now_ms() + 3_600_000)
    a, b = await ready(world, "a", clock=ahead), await ready(world, "b")
    await a.request_drain("ada", "b", 30, gateway_pb2.GOAWAY_REASON_DRAIN)
    await b.beat()
    assert (await b.wait_drain_requested()).deadline_s == 30.0


async def test_replicas_that_ended_are_forgotten(world: World, clock: MockClock) -> None:
    a, b = await ready(world, "a"), await ready(world, "b")
    await b.set_state(ReplicaState.STOPPED)
    await clock.advance(25 * 3600)
    await a.beat()
    assert [replica.replica_id for replica in await a.list()] == ["a"]


async def test_a_replica_that_was_forgotten_registers_again_and_keeps_its_streams(
    world: World, clock: MockClock
) -> None:
    a, b = await ready(world, "r1"), await ready(world, "b")
    stays, left = await world.member("stays"), await world.member("left")

    def opened(node_id: str, replica_id: str) -> Callable[[Transaction], int]:
        fields = {"stream_id": "s", "replica_id": replica_id, "last_accepted_seq": 0}
        return lambda tx: take_stream(world.nodes, tx, node_id, **fields)  # type: ignore[arg-type]

    for node in (stays, left):
        await world.database.write(opened(node.node_id, "r1"))
    await b.beat()
    await look_on(b, clock)
    await clock.advance(25 * 3600)
    await b.beat()
    assert [replica.replica_id for replica in await b.list()] == ["b"]
    await world.database.write(lambda tx: world.nodes.forget_streams(tx, "r1"))  # as the server does with the lost
    await world.database.write(opened(left.node_id, "b"))

    for node in (stays, left):
        world.nodes.note_alive_nowait(node.node_id, epoch=1, rtt_us=1, clock_offset_ms=0)
    for _ in range(2):
        await a.beat()
        await world.nodes.flush()
    shown = await b.get("r1")
    assert (shown.state, shown.streams, shown.heartbeat_at_ms) == (ReplicaState.READY, 7, clock.now_ms())
    assert (await world.audited()).count("replica.started") == 3, "once more, and once only"
    there, away = await world.node("stays"), await world.node("left")
    assert (there.online, there.replica_id, there.stream_epoch) == (True, "r1", 1)
    assert (away.replica_id, away.stream_epoch) == ("b", 2)
    await a.request_drain("ada", "r1", 0, gateway_pb2.GOAWAY_REASON_DRAIN)
    await a.beat()
    assert (await a.wait_drain_requested()).deadline_ms == 0


async def test_a_replica_that_was_taken_for_lost_looks_at_its_streams_and_says_that_it_is_back(
    world: World, clock: MockClock
) -> None:
    """Its machine was paused: it knows nothing of it."""
    a, b = await ready(world, "a"), await ready(world, "b")
    await a.beat()
    await b.beat()
    assert a.returns == 0
    await look_on(b, clock)
    assert ((await b.get("a")).state, b.gone[-1]) == (ReplicaState.LOST, "a")
    a.returning = Refusal(Reason.UNAVAILABLE, "the database went away again")
    assert await refused(a.beat()) is Reason.UNAVAILABLE
    assert (await b.get("a")).state is ReplicaState.READY
    a.returning = None
    for _ in range(2):
        await a.beat()
    assert a.returns == 1, "until it is done, and once"
    assert (await world.audited())[-2:] == ["replica.lost", "replica.started"]


async def test_a_replica_that_stood_still_in_the_middle_of_a_beat_finds_out_as_well(
    world: World, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await ready(world, "a"), await ready(world, "b")
    look = a._look

    async def look_and_stand_still() -> Sequence[ReplicaRecord]:
        seen = await look()
        await look_on(b, clock)
        return seen

    monkeypatch.setattr(a, "_look", look_and_stand_still)
    await a.beat()
    assert (b.gone[-1], (await b.get("a")).state, a.returns) == ("a", ReplicaState.READY, 1)
    assert (await world.audited())[-2:] == ["replica.lost", "replica.started"]


async def test_a_replica_says_which_schema_it_was_built_with(world: World) -> None:
    await ready(world, "r1")
    query = "SELECT schema_revision FROM replicas"
    assert await world.database.read(lambda conn: conn.exec_driver_sql(query).scalar_one()) == REVISION


async def test_clocks_that_are_apart_are_told_once_and_so_is_their_return(
    world: World, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_clock, "read_ms", lambda _: clock.now_ms())
    with capture_logs() as logged:
        replica = await ready(world, "a", clock=(own := clock.seen_by(-6_000)))
        await replica.beat()
        await replica.beat()
        assert world.database.clock.now_ms(own) == clock.now_ms()
        monkeypatch.setattr(database_clock, "read_ms", lambda _: own.now_ms() + 4_000)
        await replica.beat()
    said = [each["event"] for each in logged if each["event"].startswith("clock_is")]
    assert said == ["clock_is_off", "clock_is_right"]
