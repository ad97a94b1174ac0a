"""Answers of a path s, r, d as they are, and as liars would have them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from fleet.envelope import Domain, Signer
from fleet.v1 import probe_pb2, trust_pb2
from fleet_node.routes import walk_rules
from fleet_node.routes.probe_rules import Probe, read_request, request
from fleet_node.routes.walk_rules import Onward
from tests.unit.fleet_node.routes.mesh import CLUSTER, NONCE, ROUTE

PATH = ("s", "r", "d")
PROBE = Probe(CLUSTER, ROUTE, 7, PATH, NONCE, 1_900_000_003_000)
SIGNERS: Mapping[str, Signer] = {name: Signer.generate() for name in "srdx"}
ELAPSED_US, ONWARD_US = 3000, 2000


def key_of(node_id: str) -> bytes:
    """What the source's snapshot says."""
    return SIGNERS[node_id].public_key if node_id in SIGNERS else b""


def record(hop: int, probe: Probe = PROBE, signer: Signer | None = None, **changes: Any) -> trust_pb2.Signed:
    """A record as the node of that hop makes it, with changes."""
    is_last = hop == len(probe.path) - 1
    node_id = probe.path[hop]
    honest: dict[str, Any] = {
        "node_id": node_id,
        "nonce": probe.nonce,
        "hop_index": hop,
        "onward_us": 0 if is_last else ONWARD_US,
        "onward": walk_rules.END if is_last else walk_rules.ANSWERED,
        "statement_sha256": hashlib.sha256(probe.statement(hop)).digest(),
    }
    said = probe_pb2.HopRecord(**{**honest, **changes})
    return (signer or SIGNERS[node_id]).sign(Domain.PROBE_HOP, said.SerializeToString())


def serialized(*hops: trust_pb2.Signed) -> bytes:
    """A WalkResponse; the last node's record first."""
    return probe_pb2.WalkResponse(hops=hops).SerializeToString()


def honest_answer(probe: Probe = PROBE) -> bytes:
    """What r answers when all is well."""
    end = walk_rules.answer(read_request(request(probe, 2, SIGNERS["r"])), None, "d", SIGNERS["d"])
    onward = Onward(
        walk_rules.ANSWERED,
        elapsed_us=ONWARD_US,
        testimony=walk_rules.read_answer(end, probe, 2, key_of),
    )
    return walk_rules.answer(read_request(request(probe, 1, SIGNERS["s"])), onward, "r", SIGNERS["r"])


def forged(change: Callable[[probe_pb2.WalkResponse], None]) -> bytes:
    """The honest answer with a change."""
    response = probe_pb2.WalkResponse.FromString(honest_answer())
    change(response)
    return response.SerializeToString()
