"""Nodes over both databases: selection, states, labels, streams, counters, liveness, and tampered rows."""

import asyncio
import hashlib
from collections.abc import Sequence

import pytest

from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.v1 import gateway_pb2, session_pb2
from fleet_server.nodes.record import DrainState, NodeRecord, NodeState
from tests.fakes.clock import MockClock
from tests.fakes.streams import take_stream
from tests.unit.fleet_server.sessions.world import World, hello_body


async def refused(work: object) -> Reason:
    with pytest.raises(Refusal) as caught:
        await work  # type: ignore[misc]
    assert caught.value.detail
    return caught.value.reason


async def make(world: World, name: str, **fields: object) -> NodeRecord:
    keys = NodeKeys.generate()
    wanted = {"site": "", "labels": {}} | fields
    return await world.database.write(
        lambda tx: world.nodes.create(
            tx,
            cluster_id=world.trust.cluster_id,
            name=name,
            identity_key=keys.identity.public_key,
            sealing_key=keys.sealing_public,
            **wanted,  # type: ignore[arg-type]
        )
    )


async def open_stream(world: World, node_id: str, *, accepted: int = 0, replica_id: str = "r1") -> int:
    return await world.database.write(
        lambda tx: take_stream(
            world.nodes, tx, node_id, stream_id="s", replica_id=replica_id, last_accepted_seq=accepted
        )
    )


async def names(world: World, *patterns: str, **page: object) -> list[str]:
    return [node.name for node in await world.nodes.select(list(patterns), **page)]  # type: ignore[arg-type]


async def test_select_by_name_id_glob_label_and_site(world: World) -> None:
    web1 = await make(world, "web-1", labels={"role": "web", "tier": "a"}, site="berlin")
    await make(world, "web-2", labels={"role": "web", "tier": "b"}, site="paris")
    await make(world, "db-1", labels={"role": "db", "tier": "a"})
    assert await names(world) == ["db-1", "web-1", "web-2"]
    assert await names(world, web1.node_id) == ["web-1"]
    assert await names(world, "web-*") == ["web-1", "web-2"]
    assert await names(world, "role=web,tier=b") == ["web-2"]
    assert await names(world, "site=paris", "db-1") == ["db-1", "web-2"]
    assert await names(world, "role=nobody") == []
    assert await refused(names(world, "web-1", "web-9")) is Reason.NO_TARGETS
    assert await refused(names(world, "Röck!")) is Reason.INVALID_ARGUMENT


async def test_select_is_paged(world: World) -> None:
    for number in range(7):
        await make(world, f"n-{number}", labels={"odd": str(number % 2)})
    assert await names(world, limit=3) == ["n-0", "n-1", "n-2"]
    assert await names(world, after="n-4") == ["n-5", "n-6"]
    assert await names(world, "odd=1", after="n-1", limit=1) == ["n-3"]
    assert await names(world, "n-1", "n-5", after="n-1") == ["n-5"]


async def test_get(world: World) -> None:
    node = await make(world, "web-1")
    assert (await world.nodes.get("web-1")).node_id == node.node_id
    assert (await world.nodes.get(node.node_id)).name == "web-1"
    assert await refused(world.nodes.get("nobody")) is Reason.NOT_FOUND


async def test_names_and_keys_are_taken_once(world: World) -> None:
    await make(world, "web-1")
    assert await refused(make(world, "web-1")) is Reason.CONFLICT
    assert (await make(world, "web-1", unique_suffix=True)).name.startswith("web-1-")
    assert await refused(make(world, "Web")) is Reason.INVALID_ARGUMENT
    long = await make(world, "n" * 63)
    assert len((await make(world, long.name, unique_suffix=True)).name) == 63


async def test_open_commands_come_from_whoever_counts_them(world: World) -> None:
    node = await make(world, "web-1")
    world.nodes.count_open_with(lambda _, node_ids: dict.fromkeys(node_ids, 4))
    assert (await world.nodes.get(node.node_id)).open_commands == 4


async def test_suspend_and_resume(world: World) -> None:
    node = await make(world, "web-1")
    woken: list[str] = []
    world.wakeup.subscribe(f"node-state:{node.node_id}", lambda: woken.append("state"))
    [suspended] = await world.nodes.set_state("ada", ["web-1"], "SUSPENDED", "maintenance")
    assert (suspended.state, suspended.state_reason, suspended.intact) == (NodeState.SUSPENDED, "maintenance", True)
    [resumed] = await world.nodes.set_state("ada", ["web-1"], "ACTIVE", "")
    assert resumed.state is NodeState.ACTIVE
    assert woken == ["state", "state"]
    assert (await world.audited()).count("node.state_changed") == 2


async def test_decisions_are_counted_once_they_stand(world: World) -> None:
    await make(world, "web-1")
    counts = [world.nodes.decisions]
    for decide in (
        lambda: world.nodes.set_state("ada", ["web-1"], "SUSPENDED", ""),
        lambda: world.nodes.request_drain("ada", ["web-1"], 0, ""),
        lambda: world.nodes.label("ada", ["web-1"], {"a": "b"}, []),
    ):
        await decide()
        counts.append(world.nodes.decisions)
    assert await refused(world.nodes.set_state("ada", ["none"], "ACTIVE", "")) is Reason.NO_TARGETS
    assert [*counts, world.nodes.decisions] == [0, 1, 2, 3, 3]


async def test_revoked_is_final_and_told_to_whoever_holds_credentials(world: World) -> None:
    node = await make(world, "web-1")
    revoked: list[str] = []
    world.nodes.on_revoke(lambda _, node_id: revoked.append(node_id) or ())  # type: ignore[func-returns-value]
    await world.nodes.set_state("ada", ["web-1"], "REVOKED", "sold")
    assert revoked == [node.node_id]
    assert await refused(world.nodes.set_state("ada", ["web-1"], "ACTIVE", "")) is Reason.CONFLICT
    [again] = await world.nodes.set_state("ada", ["web-1"], "REVOKED", "")
    assert again.state_reason == "sold"


async def test_a_batch_passes_over_nodes_that_cannot_follow(world: World) -> None:
    await make(world, "gone")
    await make(world, "here")
    await world.nodes.set_state("ada", ["gone"], "REVOKED", "")
    states = {node.name: node.state for node in await world.nodes.set_state("ada", ["*"], "SUSPENDED", "")}
    assert states == {"gone": NodeState.REVOKED, "here": NodeState.SUSPENDED}


@pytest.mark.parametrize("state", ["", "QUARANTINED", "active", "DELETED"])
async def test_states_that_nobody_sets(world: World, state: str) -> None:
    await make(world, "web-1")
    assert await refused(world.nodes.set_state("ada", ["web-1"], state, "")) is Reason.INVALID_ARGUMENT


async def test_nobody_meant(world: World) -> None:
    assert await refused(world.nodes.set_state("ada", ["*"], "SUSPENDED", "")) is Reason.NO_TARGETS
    assert await refused(world.nodes.set_state("ada", [], "SUSPENDED", "")) is Reason.NO_TARGETS


async def test_labels(world: World) -> None:
    await make(world, "web-1", labels={"role": "web"})
    [node] = await world.nodes.label("ada", ["web-1"], {"tier": "a"}, ["role"])
    assert node.labels == {"tier": "a"}
    assert await names(world, "tier=a") == ["web-1"]
    for key, value in (("site", "x"), ("reported.os", "x"), ("UPPER", "x"), ("k", "a,b"), ("k", "a=b"), ("", "x")):
        assert await refused(world.nodes.label("ada", ["web-1"], {key: value}, [])) is Reason.INVALID_ARGUMENT


async def test_streams_epochs_and_ends(world: World) -> None:
    node = await make(world, "web-1")
    assert await open_stream(world, node.node_id) == 1
    assert await open_stream(world, node.node_id) == 2
    assert not await world.nodes.close_stream(node.node_id, 1)
    assert (await world.node("web-1")).online
    assert await world.nodes.close_stream(node.node_id, 2)
    assert not (await world.node("web-1")).online


async def test_seqs_are_taken_once_per_node(world: World) -> None:
    a, b = (await make(world, "a")).node_id, (await make(world, "b")).node_id
    take = world.nodes.take_seqs
    assert await world.database.write(lambda tx: take(tx.conn, {a: 3, b: 1})) == {a: (1, 0), b: (1, 0)}
    await open_stream(world, b)
    assert await world.database.write(lambda tx: take(tx.conn, {a: 2, b: 2})) == {a: (4, 0), b: (2, 1)}
    taken = await asyncio.gather(*(world.database.write(lambda tx: take(tx.conn, {a: 1})) for _ in range(20)))
    assert sorted(each[a].first for each in taken) == list(range(6, 26))


async def test_seqs_of_a_whole_fleet(world: World) -> None:
    ids = [(await make(world, f"n-{number}")).node_id for number in range(5)]
    counts = {node_id: 1 + number % 3 for number, node_id in enumerate(ids)}
    await world.database.write(lambda tx: world.nodes.take_seqs(tx.conn, counts))
    assert {node.node_id: node.last_seq for node in await world.nodes.select([])} == counts


async def test_profiles_are_shared_and_their_change_is_audited(world: World) -> None:
    a, b = await make(world, "a"), await make(world, "b")
    body = hello_body()
    for node in (a, b, a):
        await world.database.write(lambda tx, node=node: world.nodes.save_profiles(tx, {node.node_id: body}))
    assert (await world.audited()).count("node.actions_changed") == 2
    found = await world.database.read(lambda conn: world.nodes.action_schemas(conn, [a.node_id, b.node_id, "nd_x"]))
    assert len(found.sets) == 1
    action = found.lookup(b.node_id, "host.info")
    assert action is not None
    assert action.arguments_schema == b'{"type":"object"}'
    assert found.lookup(b.node_id, "host.else") is None
    assert found.lookup("nd_x", "host.info") is None
    changed = hello_body(drivers=[])
    await world.database.write(lambda tx: world.nodes.save_profiles(tx, {b.node_id: changed}))
    assert await world.nodes.drivers(b.node_id) == ()
    assert [driver.name for driver in await world.nodes.drivers(a.node_id)] == ["host"]


async def test_drivers_written_around_the_server_speak_for_nobody(world: World) -> None:
    node = await make(world, "a")
    await world.database.write(lambda tx: world.nodes.save_profiles(tx, {node.node_id: hello_body()}))
    evil = gateway_pb2.HelloBody().SerializeToString() + b"\x0a\x01x"
    await world.execute("UPDATE node_profiles SET drivers = ?", evil)
    fresh = World(world.database, world.clock, replica_id="r9").nodes
    assert await fresh.drivers(node.node_id) == ()
    await world.execute("UPDATE node_profiles SET drivers_sha256 = ?", hashlib.sha256(b"?").digest())
    assert await fresh.drivers(node.node_id) == ()


async def test_a_rollout_asks_for_active_nodes_that_are_there_or_were_lately(world: World, clock: MockClock) -> None:
    for name, site, number in (("a", "berlin", 3), ("b", "berlin", 4), ("c", "paris", 3), ("d", "paris", 3)):
        node = await make(world, name, site=site)
        body = hello_body(bundle_version=session_pb2.BundleVersion(generation=1, number=number))
        await world.database.write(lambda tx, node=node, body=body: world.nodes.save_profiles(tx, {node.node_id: body}))
        epoch = await open_stream(world, node.node_id)
        if name == "d":
            await world.nodes.close_stream(node.node_id, epoch)
    await make(world, "never-seen", site="berlin")
    clock.step_wall(3600)
    await world.nodes.set_state("ada", ["c"], "SUSPENDED", "odd readings")

    async def held(site: str, seen_since_ms: int) -> list[tuple[tuple[int, int], int, int, str]]:
        return await world.database.read(lambda conn: world.nodes.bundle_holdings(conn, site, seen_since_ms))

    now_ms = clock.now_ms()
    assert await held("", now_ms) == [((0, 0), 1, 0, ""), ((1, 3), 3, 1, "a"), ((1, 4), 1, 1, "b")]
    assert await held("", now_ms - 3_600_000) == [((0, 0), 1, 0, ""), ((1, 3), 3, 2, "a"), ((1, 4), 1, 1, "b")]
    assert await held("paris", now_ms) == [((1, 3), 2, 0, "")]
    await world.nodes.set_state("ada", ["a"], "REVOKED", "stolen")
    assert await held("berlin", now_ms) == [((0, 0), 1, 0, ""), ((1, 4), 1, 1, "b")]


async def test_bundle_holders(world: World) -> None:
    a, b = await make(world, "a"), await make(world, "b")
    version = session_pb2.BundleVersion(generation=1, number=3)
    for node in (a, b):
        body = hello_body(bundle_version=version)
        await world.database.write(lambda tx, node=node, body=body: world.nodes.save_profiles(tx, {node.node_id: body}))
    held = gateway_pb2.BundleApplied(version=session_pb2.BundleVersion(generation=1, number=4), applied=True)
    await world.nodes.note_bundle(b.node_id, 0, held)
    assert await world.nodes.bundle_holders() == {(1, 3): 1, (1, 4): 1}
    refused_one = gateway_pb2.BundleApplied(version=version, applied=False, reason="ROLLBACK")
    await world.nodes.note_bundle(a.node_id, 0, refused_one)
    assert "node.bundle_refused" in await world.audited()


async def test_a_drains_deadline_is_the_same_at_replicas_whose_clocks_differ(world: World, clock: MockClock) -> None:
    world.database.clock.note(clock.now_ms(), clock.monotonic(), clock)
    await make(world, "web-1")
    [draining] = await world.nodes.request_drain("ada", ["web-1"], 60, "kernel")
    clock.step_wall(3600)
    assert draining.drain_deadline_ms - world.nodes.now_ms() == 60_000
    await clock.advance(20)
    assert draining.drain_deadline_ms - world.nodes.now_ms() == 40_000


async def test_drain(world: World, clock: MockClock) -> None:
    node = await make(world, "web-1")
    assert not await world.nodes.mark_drained(node.node_id, 0)
    [draining] = await world.nodes.request_drain("ada", ["web-1"], 60, "kernel")
    assert (draining.drain_state, draining.drain_deadline_ms) == (DrainState.DRAINING, clock.now_ms() + 60_000)
    assert await world.nodes.mark_drained(node.node_id, 0)
    [again] = await world.nodes.request_drain("ada", ["web-1"], 60, "")
    assert again.drain_state is DrainState.DRAINED
    [resumed] = await world.nodes.resume("ada", ["web-1"])
    assert resumed.drain_state is DrainState.NONE
    kinds = await world.audited()
    assert [k for k in kinds if k.startswith("node.")] == ["node.drain_requested", "node.drained", "node.resumed"]


async def test_liveness_is_shown_at_once_and_written_in_bulk(world: World, clock: MockClock) -> None:
    node = await make(world, "web-1")
    await open_stream(world, node.node_id)
    clock.advance_nowait(5)
    world.nodes.note_alive_nowait(node.node_id, epoch=1, rtt_us=900, clock_offset_ms=-3, accepted_seq=41)
    shown = await world.node("web-1")
    assert (shown.last_seen_ms, shown.rtt_us, shown.clock_offset_ms) == (clock.now_ms(), 900, -3)
    assert shown.last_accepted_seq == 41
    assert await world.value("SELECT rtt_us FROM nodes") == 0
    await world.nodes.flush()
    assert await world.value("SELECT rtt_us FROM nodes") == 900
    world.nodes.note_alive_nowait(node.node_id, epoch=1, rtt_us=900, clock_offset_ms=-3, accepted_seq=7)
    await world.nodes.flush()
    assert await world.value("SELECT last_accepted_seq FROM nodes") == 41


async def test_who_reads_one_node_reads_what_is_left_to_do_for_no_other(world: World) -> None:
    node, _ = await make(world, "n-1"), await make(world, "n-2")
    asked: list[list[str]] = []

    def rotating(_: object, node_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        asked.append(list(node_ids))
        return {}

    world.nodes.show_rotating_with(rotating)
    await world.nodes.get("n-1")
    assert asked == [[node.node_id]]


async def test_figures_from_a_nodes_clock_fit_their_columns(world: World) -> None:
    node = await make(world, "web-1")
    await open_stream(world, node.node_id)
    world.nodes.note_alive_nowait(node.node_id, epoch=1, rtt_us=-5, clock_offset_ms=2**70)
    await world.nodes.flush()
    shown = await world.node("web-1")
    assert (shown.rtt_us, shown.clock_offset_ms) == (0, 2**31 - 1)


async def test_a_lost_replicas_nodes_are_offline_until_they_show_life_on_it(world: World) -> None:
    here, there = await make(world, "here"), await make(world, "there")
    await open_stream(world, here.node_id)
    await open_stream(world, there.node_id, replica_id="r2")
    assert await world.database.write(lambda tx: world.nodes.forget_streams(tx, "r1")) == 1
    assert not (await world.node("here")).online
    assert (await world.node("there")).online
    world.nodes.note_alive_nowait(here.node_id, epoch=1, rtt_us=1, clock_offset_ms=0)
    world.nodes.note_alive_nowait(there.node_id, epoch=1, rtt_us=1, clock_offset_ms=0)
    await world.nodes.flush()
    assert (await world.node("here")).online
    await world.nodes.close_stream(here.node_id, 1)
    world.nodes.note_alive_nowait(here.node_id, epoch=1, rtt_us=1, clock_offset_ms=0)
    await world.nodes.flush()
    assert not (await world.node("here")).online


async def test_the_end_of_a_stream_that_cannot_be_written_is_written_with_the_next_flush(world: World) -> None:
    node = await make(world, "web-1")
    await open_stream(world, node.node_id)
    world.nodes.note_alive_nowait(node.node_id, epoch=1, rtt_us=1, clock_offset_ms=0)
    write = world.database.write

    async def away(_: object) -> None:
        raise Refusal(Reason.UNAVAILABLE, "away")

    world.database.write = away  # type: ignore[method-assign,assignment]
    assert await refused(world.nodes.close_stream(node.node_id, 1)) is Reason.UNAVAILABLE
    assert await refused(world.nodes.flush()) is Reason.UNAVAILABLE
    world.database.write = write  # type: ignore[method-assign]
    await world.nodes.flush()
    assert not (await world.node("web-1")).online
    assert (await world.audited()).count("stream.closed") == 1


TAMPERINGS = [
    """UPDATE nodes SET labels = '{"role":"db"}'""",
    "UPDATE nodes SET state = 'ACTIVE'",
    "UPDATE nodes SET name = 'other'",
    "UPDATE nodes SET site = 'vault'",
    "UPDATE nodes SET state_reason = 'none'",
]


@pytest.mark.parametrize("text", TAMPERINGS)
async def test_a_row_written_around_the_server_is_quarantined(world: World, text: str) -> None:
    node = await make(world, "web-1", labels={"role": "web"})
    await world.nodes.set_state("ada", ["web-1"], "SUSPENDED", "why")
    await world.execute(text)
    [shown] = await world.nodes.select([])
    assert (shown.state, shown.labels, shown.intact) == (NodeState.QUARANTINED, {}, False)
    assert await names(world, "role=db") == []
    await world.nodes.flush()
    await world.nodes.select([])
    await world.nodes.flush()
    assert (await world.audited()).count("node.quarantined") == 1
    assert await world.value("SELECT state FROM nodes") == "QUARANTINED"
    assert await refused(world.nodes.set_state("ada", [node.node_id], "ACTIVE", "")) is Reason.CONFLICT
    assert await refused(world.nodes.label("ada", [node.node_id], {"a": "b"}, [])) is Reason.CONFLICT
    [revoked] = await world.nodes.set_state("ada", [node.node_id], "REVOKED", "tampered")
    assert (revoked.state, revoked.intact) == (NodeState.REVOKED, True)
    await world.execute("UPDATE nodes SET state = 'ACTIVE'")  # a second deed is audited as well
    await world.nodes.select([])
    await world.nodes.flush()
    assert (await world.audited()).count("node.quarantined") == 2


async def test_a_quarantine_survives_a_database_that_is_away(world: World) -> None:
    await make(world, "web-1")
    await world.execute("UPDATE nodes SET site = 'vault'")
    await world.nodes.select([])
    write, fails = world.database.write, Refusal(Reason.UNAVAILABLE, "away")

    async def away(_: object) -> None:
        raise fails

    world.database.write = away  # type: ignore[method-assign,assignment]
    assert await refused(world.nodes.flush()) is Reason.UNAVAILABLE
    world.database.write = write  # type: ignore[method-assign]
    await world.nodes.flush()
    assert "node.quarantined" in await world.audited()
