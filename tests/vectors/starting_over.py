"""A machine that starts over, and keys of a node that are replaced."""

from __future__ import annotations

from fleet.envelope import Domain
from fleet.v1 import trust_pb2
from tests.vectors.cast import CLUSTER, NODE, NOW_MS, Statement
from tests.vectors.keys import exchange_public, signer


def floor() -> Statement:
    """Raises node-1's sequence floor."""
    raised = trust_pb2.FloorStatement(
        cluster_id=CLUSTER, node_id=NODE, seq_floor=42, intents_after_ms=NOW_MS, issued_at_ms=NOW_MS, audit_chain=1
    )
    return Statement("floor", Domain.FLOOR, ("authority-1",), raised)


def node_key() -> Statement:
    """Replaces both keys of node-1: signed by the old identity and by the new one."""
    rotation = trust_pb2.NodeKeyRotationStatement(
        cluster_id=CLUSTER,
        node_id=NODE,
        identity_key=signer("node-1-next").public_key,
        sealing_key=exchange_public("node-1-sealing-next"),
        issued_at_ms=NOW_MS,
    )
    return Statement("node-key", Domain.NODE_KEY, ("node-1", "node-1-next"), rotation)
