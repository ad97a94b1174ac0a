"""Walks over real TLS on loopback."""

from __future__ import annotations

from pathlib import Path

from fleet_node.routes.walk_rules import WalkState
from tests.unit.fleet_node.routes.mesh import GENERATION, ROUTE, TIMEOUT_S, mesh


async def test_a_walk_over_a_relay_is_answered_by_all_of_the_path(tmp_path: Path) -> None:
    async with mesh(tmp_path, "srd") as nodes:
        nodes.route("srd", "sd")
        relayed = await nodes["s"].caller.walk(ROUTE, GENERATION, "srd", TIMEOUT_S)
        direct = await nodes["s"].caller.walk(ROUTE, GENERATION, "sd", TIMEOUT_S)
    assert (relayed.state, relayed.observed) == (WalkState.ANSWERED, ("s", "r", "d"))
    assert 0 < relayed.first_hop_us < relayed.rtt_us
    assert (direct.state, direct.observed) == (WalkState.ANSWERED, ("s", "d"))
    assert direct.first_hop_us == direct.rtt_us > 0
