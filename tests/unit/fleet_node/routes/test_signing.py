"""Probes while a node's identity key is replaced: nobody is taken for a liar."""

from pathlib import Path

from fleet.envelope import Signer
from fleet_node.routes.signing import SteadySigner
from fleet_node.routes.walk_rules import WalkState
from tests.fakes.clock import MockClock
from tests.unit.fleet_node.routes.mesh import GENERATION, ROUTE, TIMEOUT_S, mesh
from tests.unit.fleet_node.routes.room import Room, direct
from tests.unit.fleet_node.routes.snapshots import KEYS, peer


def test_the_key_that_peers_know_is_signed_with_for_a_while() -> None:
    clock, keys = MockClock(), [Signer.generate()]
    signer = SteadySigner(lambda: keys[-1], clock)
    clock.advance_nowait(100.0)
    assert signer() is keys[0]
    keys.append(Signer.generate())
    assert signer() is keys[0]
    clock.advance_nowait(14.0)
    keys.append(Signer.generate())  # and once more: of peers each knows the middle one
    assert signer() is keys[1]
    clock.advance_nowait(14.0)
    assert signer() is keys[1]
    clock.advance_nowait(1.0)
    assert signer() is keys[2]


async def test_a_peer_may_sign_with_the_key_that_it_had_for_a_minute(tmp_path: Path) -> None:
    room = Room(tmp_path)
    view = room.service.in_force
    await room.give(direct())
    assert view.former_key("nd_b") == b""
    rotated = [peer(node_id) for node_id in KEYS]
    rotated[0].identity_key = Signer.generate().public_key
    assert rotated[0].node_id == "nd_b"
    await room.give(direct(), version=2, peers=rotated)
    await room.give(direct(), version=3, peers=rotated)
    assert (view.former_key("nd_b"), view.former_key("nd_c")) == (KEYS["nd_b"].public_key, b"")
    room.clock.advance_nowait(60.0)
    assert view.former_key("nd_b") == b""


async def test_a_walk_verifies_whichever_of_both_keys_its_nodes_sign_with(tmp_path: Path) -> None:
    async with mesh(tmp_path, "srd") as nodes:
        nodes.route("srd")
        for rotated in ("s", "r"):  # all know their new keys, and they go on with the old ones
            for name in "srd":
                view = nodes[name].view
                if rotated in view.peers:
                    view.former_keys[rotated] = view.peers[rotated].identity_key
                    view.peers[rotated].identity_key = Signer.generate().public_key
        walked = await nodes["s"].caller.walk(ROUTE, GENERATION, "srd", TIMEOUT_S)
        assert (walked.state, walked.failure) == (WalkState.ANSWERED, "")
        for name in "srd":
            nodes[name].view.former_keys.pop("r", None)
        walked = await nodes["s"].caller.walk(ROUTE, GENERATION, "srd", TIMEOUT_S)
        assert walked.state is not WalkState.ANSWERED
