"""Which snapshots and leases the room takes, keeps and answers, and what it makes of a restart."""

from pathlib import Path

import pytest

from fleet.envelope import Signer
from fleet.v1 import trust_pb2
from tests.unit.fleet_node.routes.room import Room, direct, relayed
from tests.unit.fleet_node.routes.snapshots import (
    AUTHORITY,
    CLUSTER,
    KEYS,
    NODE,
    lease,
    peer,
    route,
    signed,
    statement,
)


async def test_a_snapshot_is_in_force_once_it_is_durable(tmp_path: Path) -> None:
    room = Room(tmp_path)
    assert room.service.config_version == 0
    applied = await room.give(direct(), route(("nd_b", NODE), route_id="rt_2"), version=4)
    assert (applied.version, applied.applied, applied.reason, list(applied.withdrawn_routes)) == (4, True, "", [])
    assert room.service.config_version == 4
    assert room.audit.rows[0][1]["generations"] == {"rt_1": 1, "rt_2": 1}
    applied = await room.give(direct(), version=5)
    assert list(applied.withdrawn_routes) == ["rt_2"]
    restarted = room.restarted().service
    assert (restarted.config_version, list(restarted.in_force.routes)) == (5, ["rt_1"])


async def test_a_peer_is_called_where_the_nodes_own_settings_say(tmp_path: Path) -> None:
    room = Room(tmp_path, peer_endpoints={"nd_b": "127.0.0.9:1"})
    await room.give(direct())
    called, other = room.service.in_force.peer("nd_b"), room.service.in_force.peer("nd_c")
    assert called is not None and other is not None
    assert list(called.probe_endpoints) == ["127.0.0.9:1"]
    assert called.probe_certificate == b"leaf of nd_b"  # it has to prove itself there as well
    assert list(other.probe_endpoints) == ["127.0.0.1:9470"]


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (trust_pb2.Signed(statement=statement(direct(), version=9).SerializeToString()), "WRONG_SIGNER"),
        (signed(statement(direct(), version=9), Signer.generate()), "WRONG_SIGNER"),
        (signed(statement(direct(), version=9, cluster_id="c-other")), "WRONG_CLUSTER"),
        (signed(statement(direct(), version=9, node_id="nd_b")), "WRONG_NODE"),
        (signed(statement(direct(), version=3)), "OLDER"),
        (signed(statement(route((NODE, NODE)), version=9)), "LOOP"),
    ],
)
async def test_what_is_refused_changes_nothing_and_is_said(
    tmp_path: Path, offered: trust_pb2.Signed, reason: str
) -> None:
    room = Room(tmp_path)
    await room.give(relayed(generation=3), version=4)
    refused = await room.take(offered)
    assert (refused.version, refused.applied) == (4, False)
    assert refused.reason.startswith(f"{reason}: ")
    assert room.service.in_force.routes["rt_1"].generation == 3
    assert room.audit.kinds() == ["config.applied", "config.refused"]
    assert room.metrics.snapshots.labels(reason).value == 1
    assert room.restarted().service.config_version == 4


async def test_the_version_stays_a_floor_over_a_restart_and_a_damaged_file(tmp_path: Path) -> None:
    room = Room(tmp_path)
    await room.give(direct(), version=7)
    assert (await room.restarted().give(direct(), version=6)).reason.startswith("OLDER")
    room.parts.snapshot_path.write_bytes(room.parts.snapshot_path.read_bytes()[:-3])
    damaged = room.restarted()
    assert "is damaged" in damaged.service.status()["problem"]
    assert damaged.service.config_version == 0  # the server sends what it has
    refused = await damaged.give(direct(), version=6)
    assert (refused.version, refused.applied) == (7, False)  # a server that went back goes on above this
    assert (await damaged.give(direct(), version=7)).applied
    assert damaged.service.status()["problem"] == ""


async def test_the_version_that_is_held_is_taken_again_with_newer_leases(tmp_path: Path) -> None:
    room = Room(tmp_path)
    await room.give(relayed(), version=4, leases=[lease(expires_at_ms=500)])
    written = room.parts.snapshot_path.stat().st_mtime_ns
    assert (await room.give(relayed(), version=4, leases=[lease(expires_at_ms=900)])).applied
    held = room.service.in_force.lease_of("rt_1")
    assert held is not None
    assert held.expires_at_ms == 900
    assert room.parts.snapshot_path.stat().st_mtime_ns == written
    assert room.audit.kinds() == ["config.applied"]


async def test_an_older_generation_of_a_route_is_refused_and_the_rest_is_applied(tmp_path: Path) -> None:
    room = Room(tmp_path)
    await room.give(relayed(generation=5), version=1)
    applied = await room.give(direct(generation=4), direct(route_id="rt_2"), version=2)
    assert applied.applied
    in_force = room.service.in_force
    assert (in_force.routes["rt_1"].generation, in_force.routes["rt_1"].relay_id) == (5, "nd_r")
    assert [config.generation for config in in_force.configs_of("rt_1")] == [5]
    assert "rt_2" in in_force.routes
    assert room.audit.rows[-1][1]["refused"] == {"rt_1": "OLDER_GENERATION"}


async def test_a_new_authority_signs_from_its_bundle_on(tmp_path: Path) -> None:
    room, successor = Room(tmp_path), Signer.generate()
    await room.give(direct(), version=9)
    assert (await room.give(direct(), version=10, signer=successor)).reason.startswith("WRONG_SIGNER")
    room.rotate(successor)
    assert room.service.config_version == 0  # what it holds the new one did not sign: the server sends it again
    assert room.service.in_force.routes  # and until then it counts
    assert (await room.give(direct(), version=10)).reason.startswith("WRONG_SIGNER")
    applied = await room.give(direct(generation=2), version=2, signer=successor)
    assert (applied.applied, room.service.config_version) == (True, 2)
    restarted = room.restarted()
    restarted.rotate(successor)
    assert restarted.service.config_version == 2


async def test_nobodys_signature_counts_only_where_it_is_set_so(tmp_path: Path) -> None:
    room = Room(tmp_path, required=False)
    unsigned = trust_pb2.Signed(statement=statement(direct(), version=2).SerializeToString())
    assert (await room.take(unsigned)).applied
    assert room.service.status()["authority_required"] is False
    foreign = trust_pb2.Signed(statement=statement(direct(), version=3, cluster_id="x").SerializeToString())
    assert (await room.take(foreign)).reason.startswith("WRONG_CLUSTER")
    assert room.restarted(required=False).service.config_version == 2
    strict = room.restarted().service
    assert strict.config_version == 0
    assert "nobody signed" in strict.problem


async def test_a_disk_that_takes_nothing_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(tmp_path)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fleet_node.routes.snapshot_file.write_private", full)
    refused = await room.give(direct())
    assert (refused.version, refused.reason) == (0, "DISK: No space left on device")
    assert not room.service.in_force.routes


async def test_leases_are_acknowledged_or_refused(tmp_path: Path) -> None:
    room = Room(tmp_path)
    assert (await room.service.take_lease(lease())).reason.startswith("UNKNOWN_ROUTE: ")
    await room.give(relayed())
    ack = await room.service.take_lease(lease(generation=2))
    assert (ack.lease_id, ack.generation, ack.applied, ack.reason) == ("ls_1", 2, True, "")
    older = await room.service.take_lease(lease(generation=1))
    assert (older.applied, older.reason) == (False, "OLDER")
    forged = await room.service.take_lease(lease(Signer.generate(), generation=3))
    assert (forged.lease_id, forged.generation, forged.applied) == ("ls_1", 3, False)
    assert forged.reason.startswith("WRONG_SIGNER")
    held = room.service.in_force.lease_of("rt_1")
    assert held is not None
    assert held.generation == 2
    assert room.audit.kinds().count("lease.refused") == 2


async def test_peers_that_are_behind_meet_the_config_before_for_two_intervals(tmp_path: Path) -> None:
    room = Room(tmp_path)
    view = room.service.in_force
    await room.give(direct(probe_interval_ms=1000), version=1)
    await room.give(relayed(generation=2, probe_interval_ms=1000, reason="x"), version=2)
    assert [config.generation for config in view.configs_of("rt_1")] == [2, 1]
    await room.give(relayed(generation=2, probe_interval_ms=1000, reason="y"), version=3)
    assert [config.generation for config in view.configs_of("rt_1")] == [2, 1]  # no other way: the one before stays
    fewer = [peer(node_id) for node_id in KEYS if node_id != "nd_c"]
    assert (await room.give(relayed(generation=2, probe_interval_ms=1000), version=4, peers=fewer)).applied
    assert view.peer("nd_c") is not None
    room.clock.advance_nowait(2.0)
    assert [config.generation for config in view.configs_of("rt_1")] == [2]
    assert view.peer("nd_c") is None
    assert view.whose(b"leaf of nd_c") == ""
    await room.give(version=5)
    assert view.configs_of("rt_1") == ()


async def test_the_view_names_who_shows_a_certificate(tmp_path: Path) -> None:
    room = Room(tmp_path)
    view = room.service.in_force
    await room.give(direct())
    view.own_certificate = b"own leaf"
    assert [view.whose(leaf) for leaf in (b"leaf of nd_b", b"own leaf", b"stranger", b"")] == ["nd_b", NODE, "", ""]
    assert (view.cluster_id, view.node_id, view.signer) == (CLUSTER, NODE, AUTHORITY)
    assert view.peer("nd_b") is not None
    assert view.peer("nd_stranger") is None


async def test_a_relay_holds_a_lease_until_server_time_says_that_it_ended(tmp_path: Path) -> None:
    room = Room(tmp_path)
    view = room.service.in_force
    own = route(("nd_b", NODE, "nd_c"))
    await room.give(own)
    assert not view.holds_lease("rt_1")
    room.server_time.observe(1_000_000)  # this machine's own clock is decades ahead
    await room.service.take_lease(lease(relay_node_id=NODE, issued_at_ms=990_000, expires_at_ms=1_100_000))
    assert view.holds_lease("rt_1")
    room.clock.advance_nowait(99.0)
    assert view.holds_lease("rt_1")
    room.clock.advance_nowait(1.0)
    assert not view.holds_lease("rt_1")
