"""What this server tells nodes, its own nodes take: the two sides' bounds fit."""

import pytest

from fleet_node.routes.snapshot_rules import MAX_PEERS, MAX_ROUTES, NEVER, Authority, Snapshot, judge_snapshot
from fleet_server.routes import operator_rules, snapshots
from fleet_server.streams.route_lane import MAX_CONFIG_BYTES
from tests.unit.fleet_server.routes.mesh import Mesh


async def taken(mesh: Mesh, name: str) -> Snapshot:
    """A node's part, as the node judges it."""
    part = await mesh.routes.snapshot(mesh.ids[name])
    assert part is not None
    assert part.signed.ByteSize() < MAX_CONFIG_BYTES
    authority = Authority(mesh.trust.cluster_id, mesh.ids[name], mesh.trust.authority.public_key, generation=1)
    return judge_snapshot(part.signed, authority, NEVER)


@pytest.mark.parametrize("interval_ms", [operator_rules.MIN_PROBE_INTERVAL_MS, operator_rules.MAX_PROBE_INTERVAL_MS])
async def test_every_interval_that_an_operator_may_choose(mesh: Mesh, interval_ms: int) -> None:
    await mesh.routes.add_relay("r", by="ada")
    route = await mesh.connect("a", "b", probe_interval_ms=interval_ms)
    for name in ("a", "b", "r"):
        assert (await taken(mesh, name)).routes[route.route_id].probe_interval_ms == interval_ms


async def test_a_relay_is_told_of_its_own_routes_first_and_of_no_more_than_it_takes(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mesh.add_nodes("c")
    await mesh.routes.add_relay("r", by="ada")
    for ends in (("a", "b"), ("b", "a"), ("c", "b")):
        await mesh.connect(*ends)
    assert len((await taken(mesh, "r")).routes) == 3
    assert max(snapshots.MOST_TOLD, 2 * operator_rules.MAX_CAPACITY + 1) < min(MAX_PEERS, MAX_ROUTES)
    monkeypatch.setattr(snapshots, "MOST_TOLD", 2)
    assert len((await taken(mesh, "r")).routes) in (1, 2), "by the order of their ids"
    assert len((await taken(mesh, "b")).routes) == 3, "what it is an end of it is told whatever that is"
