"""Connections to peers: kept, cut, healed, and led to somebody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fleet.clock import SystemClock
from fleet_node.routes.probe_caller import ProbeCaller
from fleet_node.routes.walk_rules import WalkResult, WalkState
from tests.fakes.proxy import FaultProxy
from tests.unit.fleet_node.routes.mesh import GENERATION, ROUTE, TIMEOUT_S, Mesh, deaf_port, mesh


async def walk(nodes: Mesh, path: str = "sd", timeout_s: float = TIMEOUT_S) -> WalkResult:
    return await nodes["s"].caller.walk(ROUTE, GENERATION, path, timeout_s)


async def test_walks_share_one_connection(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd") as nodes, _proxy(nodes, "d") as proxy:
        nodes.route("sd")
        nodes.redirect("d", proxy.address)
        results = [await walk(nodes) for _ in range(3)]
        results += await asyncio.gather(*(walk(nodes) for _ in range(5)))
        assert proxy.opened == 1
    assert {each.state for each in results} == {WalkState.ANSWERED}


async def test_a_cut_link_is_found_and_a_healed_one_too_at_the_next_walk(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd") as nodes, _proxy(nodes, "d") as proxy:
        nodes.route("sd")
        nodes.redirect("d", proxy.address)
        assert (await walk(nodes)).state is WalkState.ANSWERED
        proxy.refuse()
        proxy.cut()
        for _ in range(3):
            cut = await walk(nodes)
            assert (cut.state, cut.failure, cut.failed_hop) == (WalkState.UNREACHABLE, "UNREACHABLE", 1)
            assert (cut.observed, cut.blamed) == (("s",), "")
        proxy.heal()
        assert (await walk(nodes)).state is WalkState.ANSWERED


async def test_a_link_that_swallows_everything_is_no_peers_fault_until_it_is_dialled_anew(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd") as nodes, _proxy(nodes, "d") as proxy:
        nodes.route("sd")
        nodes.redirect("d", proxy.address)
        assert (await walk(nodes)).state is WalkState.ANSWERED
        proxy.deafen()
        on_the_old_one = await walk(nodes, timeout_s=0.3)
        on_a_new_one = await walk(nodes, timeout_s=0.3)
        proxy.heal()
        healed = await walk(nodes)
        assert proxy.opened == 3
    assert (on_the_old_one.failure, on_the_old_one.blamed) == ("TIMED_OUT", "")
    assert (on_a_new_one.failure, on_a_new_one.blamed) == ("UNREACHABLE", "")
    assert healed.state is WalkState.ANSWERED


async def test_another_node_that_answers_is_what_was_observed(tmp_path: Path) -> None:
    async with mesh(tmp_path, "srxd") as nodes:
        nodes.route("srd", "sd")
        nodes.redirect("d", nodes["x"].endpoint)
        direct, relayed = await walk(nodes), await walk(nodes, "srd")
        del nodes["s"].view.peers["x"]
        unknown = await walk(nodes)
    assert (direct.state, direct.observed, direct.failed_hop) == (WalkState.DRIFT, ("s", "x"), 1)
    assert (direct.failure, direct.blamed) == ("WRONG_NODE", "x")
    assert (relayed.state, relayed.observed, relayed.failed_hop) == (WalkState.DRIFT, ("s", "r", "x"), 2)
    assert (relayed.failure, relayed.blamed) == ("WRONG_NODE", "x")
    assert (unknown.state, unknown.observed, unknown.failure) == (WalkState.DRIFT, ("s",), "UNKNOWN_NODE")
    assert unknown.blamed == ""


async def test_the_first_endpoint_that_leads_to_the_peer_is_kept(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sxd") as nodes, _proxy(nodes, "d") as closed, deaf_port() as (deaf, came):
        closed.refuse()
        nodes.route("sd")
        nodes.redirect("d", closed.address, nodes["x"].endpoint, deaf, nodes["d"].endpoint)
        first = await walk(nodes, timeout_s=3.0)
        second = await walk(nodes)
        assert len(came) == 1
        nodes.redirect("d", nodes["x"].endpoint, closed.address)
        wrong = await walk(nodes)
    assert (first.state, second.state) == (WalkState.ANSWERED, WalkState.ANSWERED)
    assert (wrong.state, wrong.blamed) == (WalkState.DRIFT, "x")


async def test_a_peer_without_an_endpoint_or_a_name_is_not_dialled(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd") as nodes:
        nodes.redirect("d")
        assert (await walk(nodes)).failure == "NO_ENDPOINT"
        nodes.redirect("d", nodes["d"].endpoint)
        nodes["s"].view.peers["d"].ClearField("probe_certificate")
        assert (await walk(nodes)).failure == "NO_ENDPOINT"
        nodes["s"].view.peers.clear()
        assert (await walk(nodes)).failure == "NO_ENDPOINT"
        assert (await walk(nodes, "ss")).failure == "LOOP"


async def test_connections_end_with_the_peers_of_the_snapshot(tmp_path: Path) -> None:
    async with mesh(tmp_path, "srd") as nodes:
        nodes.route("sd", "srd")
        await walk(nodes)
        await walk(nodes, "srd")
        channels = nodes["s"].caller._channels
        assert channels.open_channels == 2
        del nodes["s"].view.peers["r"]
        await nodes["s"].caller.prune()
        assert channels.open_channels == 1
        d = nodes["s"].view.peers["d"]
        d.probe_endpoints.append("127.0.0.1:1")
        await nodes["s"].caller.prune()
        assert channels.open_channels == 0
        assert (await walk(nodes)).state is WalkState.ANSWERED
        d.probe_certificate = nodes["r"].listener.certificate
        await nodes["s"].caller.prune()
        assert channels.open_channels == 0
        assert (await walk(nodes)).state is WalkState.DRIFT


async def test_no_more_connections_are_kept_than_the_limit(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sabd") as nodes:
        nodes.route("sa", "sb", "sd")
        nodes["s"].caller = ProbeCaller(nodes["s"].view, SystemClock(), max_channels=2)
        for _ in range(2):
            for end in "abd":
                assert (await walk(nodes, f"s{end}")).state is WalkState.ANSWERED
        assert nodes["s"].caller._channels.open_channels == 2


async def test_a_walk_that_is_cancelled_leaves_the_connection_usable(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd") as nodes, _proxy(nodes, "d") as proxy:
        nodes.route("sd")
        nodes.redirect("d", proxy.address)
        proxy.hold()
        connecting = asyncio.create_task(walk(nodes))
        await proxy.wait_opened(1)
        connecting.cancel()
        proxy.release()
        assert (await walk(nodes)).state is WalkState.ANSWERED
        proxy.hold()
        waiting = asyncio.create_task(walk(nodes))
        await asyncio.sleep(0)
        waiting.cancel()
        proxy.release()
        done = await asyncio.gather(connecting, waiting, return_exceptions=True)
        assert [type(each) for each in done] == [asyncio.CancelledError] * 2
        assert (await walk(nodes)).state is WalkState.ANSWERED


async def test_closing_ends_walks_that_are_under_way(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd") as nodes, _proxy(nodes, "d") as proxy:
        nodes.route("sd")
        nodes.redirect("d", proxy.address)
        await walk(nodes)
        proxy.hold()
        waiting = asyncio.create_task(walk(nodes))
        await asyncio.sleep(0)
        await nodes["s"].caller.close()
        assert (await waiting).state is WalkState.UNREACHABLE
        proxy.release()
        assert (await walk(nodes)).state is WalkState.UNREACHABLE
        assert nodes["s"].caller._channels.open_channels == 0


def _proxy(nodes: Mesh, node_id: str) -> FaultProxy:
    host, _, port = nodes[node_id].endpoint.rpartition(":")
    return FaultProxy((host, int(port)))
