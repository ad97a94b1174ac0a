"""Fault: somebody between node and server, or an old server, hands out a configuration that is not the node's.

Must hold (docs/protocol.md, "Routes"): what the authority did not sign for this node, and what is older than what it
has, is refused and said, on a restarted node too; the routes that it has stay in force.
"""

from collections.abc import AsyncIterator

import pytest

from fleet.envelope import Domain, Signer
from fleet.v1 import route_pb2, trust_pb2
from tests.fakes.rogue import RogueGateway, RogueStream
from tests.integration.installation import Installation, RunningNode


@pytest.fixture
async def rogue(installation: Installation) -> AsyncIterator[RogueGateway]:
    async with RogueGateway(installation.stolen()) as gateway:
        yield gateway


@pytest.fixture
async def node(installation: Installation, rogue: RogueGateway) -> RunningNode:
    started = await installation.enroll("n-1", endpoints=(rogue.endpoint,))
    await started.start()
    return started


async def given(stream: RogueStream, signed: trust_pb2.Signed) -> route_pb2.ConfigApplied:
    """What the node says to a snapshot."""
    stream.send(config=signed)
    applied: route_pb2.ConfigApplied = await stream.wait_control("config_applied")
    return applied


async def test_what_is_not_signed_for_this_node_now_is_refused(rogue: RogueGateway, node: RunningNode) -> None:
    stream = await rogue.wait_stream()
    authority, peer = rogue.trust.authority, Signer.generate()

    def snapshot(version: int, signer: Signer | None = authority, **changed: str) -> trust_pb2.Signed:
        statement = route_pb2.ConfigSnapshotStatement(
            cluster_id=changed.get("cluster_id", rogue.trust.cluster_id),
            node_id=changed.get("node_id", node.node_id),
            version=version,
            routes=[
                route_pb2.RouteConfig(
                    route_id="rt_1",
                    generation=1,
                    path=[node.node_id, "nd_b"],
                    service_class="synthetic",
                    probe_interval_ms=10_000,
                    candidate_interval_ms=60_000,
                )
            ],
            peers=[route_pb2.Peer(node_id="nd_b", identity_key=peer.public_key)],
        ).SerializeToString()
        return trust_pb2.Signed(statement=statement) if signer is None else signer.sign(Domain.CONFIG, statement)

    assert (await given(stream, snapshot(5))).applied
    wrong_domain = authority.sign(Domain.LEASE, snapshot(6).statement)
    offered = {
        "unsigned": (snapshot(6, None), "WRONG_SIGNER"),
        "signed by somebody else": (snapshot(6, Signer.generate()), "WRONG_SIGNER"),
        "signed as something else": (wrong_domain, "WRONG_SIGNER"),
        "of another cluster": (snapshot(6, cluster_id="c-other"), "WRONG_CLUSTER"),
        "of another node": (snapshot(6, node_id="nd_other"), "WRONG_NODE"),
        "older": (snapshot(4), "OLDER"),
    }
    for attempt, (signed, reason) in offered.items():
        said = await given(stream, signed)
        assert (said.version, said.applied, said.reason.partition(":")[0]) == (5, False, reason), attempt

    await node.stop()
    await node.start()
    stream = await rogue.wait_stream(2)
    assert stream.hello.config_version == 5
    assert (await given(stream, snapshot(4))).reason.startswith("OLDER")
    assert (await given(stream, snapshot(6))).applied
