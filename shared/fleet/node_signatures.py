"""What a node signs of its own audit, and how a reader tells that a chain was built without the node's key.

A row `chain.signed` signs the hash of the row before it, and with that the whole chain up to there (docs/protocol.md,
"Audit of a node"). The server stores it as every other row. Who has the cluster's authority could rewrite the server's
copy of a node's rows and sign checkpoints over that; the node's signatures are not theirs to make.

Pure: verified rows come in as arguments, findings are raised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from fleet.audit_chain import ChainRow
from fleet.audit_findings import AuditFinding
from fleet.envelope import PUBLIC_KEY_BYTES, Domain, EnvelopeError, verify_one
from fleet.identity import NodeKeys, fingerprint, show_fingerprint
from fleet.node_audit import NodeAuditKind, chain_of, node_of
from fleet.node_keys import KnownKeys, NodeKeyError, judge_rotation
from fleet.v1 import trust_pb2

SIGN_EVERY_S = 60.0
SIGN_EVERY_ROWS = 1024
MAX_UNSIGNED_ROWS = 2 * SIGN_EVERY_ROWS
"""Rows of a chain that may wait for the node's signature."""
_FAR_MS = 2**62


class NodeSignatureWrong(AuditFinding):
    """A row says that the node signed its chain, and the signature is not of its key over that chain."""

    code = "NODE_SIGNATURE_WRONG"


class NodeKeyChanged(AuditFinding):
    """Another key signs a node's chain than before, and the key before did not say so."""

    code = "NODE_KEY_CHANGED"


class NodeUnsigned(AuditFinding):
    """So many rows of a node's chain follow each other without its signature that the node did not write them."""

    code = "NODE_UNSIGNED"


def signature_detail(keys: NodeKeys, node_id: str, chain: int, number: int, row_hash: bytes) -> dict[str, str]:
    """Detail of the row that signs the row of that number and hash."""
    statement = trust_pb2.NodeAuditHeadStatement(
        node_id=node_id,
        chain=chain,
        number=number,
        hash=row_hash,
        identity_key=keys.identity.public_key,
        sealing_key=keys.sealing_public,
    )
    signed = keys.identity.sign(Domain.NODE_AUDIT, statement.SerializeToString())
    return {"signed": signed.SerializeToString().hex()}


@dataclass(slots=True)
class _Signed:
    """What is known of one node: its keys, in which chain they were seen, the identity that it named as its next, and
    how many rows of each chain wait for a signature."""

    identity_key: bytes = b""
    sealing_key: bytes = b""
    chain: int = 0
    announced: bytes = b""
    waiting: dict[int, int] = field(default_factory=dict)


class NodeSignatures:
    """Take the verified rows of all chains, in any order that keeps each chain's own; then `finish`."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Signed] = {}
        self._findings: dict[str, AuditFinding] = {}
        self.replaced: list[str] = []
        """Nodes that go on in another chain with keys that those before did not name: as another machine does."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """By node, of the keys that signed last."""
        return {
            node_id: show_fingerprint(fingerprint(node.identity_key, node.sealing_key))
            for node_id, node in self._nodes.items()
            if node.identity_key
        }

    @property
    def unsigned_rows(self) -> int:
        """Rows behind the newest signatures of their nodes."""
        return sum(sum(node.waiting.values()) for node in self._nodes.values())

    def add_row(self, row: ChainRow) -> None:
        """Take the next row, also one of no node. What it shows to be wrong is kept for `finish`."""
        node_id = node_of(row.writer)
        if node_id is None or node_id in self._findings:
            return
        try:
            self._add(node_id, chain_of(row.writer), row)
        except AuditFinding as finding:
            self._findings[node_id] = finding
        except ValueError:
            return  # the name of no chain: whoever checks chains says so

    def finish(self) -> None:
        """Say that nothing more comes.

        Raises:
            NodeSignatureWrong, NodeKeyChanged, NodeUnsigned: the first that was found; the message says of how many
                nodes more something was.
        """
        for first in self._findings.values():
            more = len(self._findings) - 1
            raise type(first)(f"{first}; and of {more} nodes more" if more else str(first))

    def _add(self, node_id: str, chain: int, row: ChainRow) -> None:
        node = self._nodes.setdefault(node_id, _Signed())
        if row.kind == NodeAuditKind.CHAIN_SIGNED:
            self._take(node_id, node, chain, row)
            node.waiting[chain] = 0
            return
        if row.kind == NodeAuditKind.CREDENTIAL_STORED:
            _announce(node_id, node, row)
        node.waiting[chain] = node.waiting.get(chain, 0) + 1
        if node.waiting[chain] > MAX_UNSIGNED_ROWS:
            raise NodeUnsigned(f"{node.waiting[chain]} rows up to row {row.number} of {row.writer} have no signature")

    def _take(self, node_id: str, node: _Signed, chain: int, row: ChainRow) -> None:
        name = f"row {row.number} of {row.writer}"
        said = _said(row)
        if said is None:
            raise NodeSignatureWrong(f"{name} is not signed by the keys that it names")
        if (said.node_id, said.chain, said.number, said.hash) != (node_id, chain, row.number - 1, row.previous_hash):
            raise NodeSignatureWrong(f"{name} signs another row than the one before it")
        identity, sealing = said.identity_key, said.sealing_key
        if node.identity_key not in (b"", identity) and identity != node.announced:
            known = show_fingerprint(fingerprint(node.identity_key, node.sealing_key))
            other = show_fingerprint(fingerprint(identity, sealing))
            if chain > node.chain:
                self.replaced.append(f"{node_id} signs chain {chain} with {other}, the chain before with {known}")
                node.identity_key, node.sealing_key, node.chain = identity, sealing, chain
                return
            raise NodeKeyChanged(
                f"{name} is signed by the keys {other}; until then it was {known}, which did not name them: compare"
                f" with `fleet-node status` on the machine of {node_id}"
            )
        node.identity_key, node.sealing_key, node.chain = identity, sealing, max(chain, node.chain)


def _announce(node_id: str, node: _Signed, row: ChainRow) -> None:
    """The node made new keys: the statement is signed by the keys before."""
    try:
        signed = trust_pb2.Signed.FromString(bytes.fromhex(json.loads(row.detail)["statement"]))
        said = trust_pb2.NodeKeyRotationStatement.FromString(signed.statement)
        known = KnownKeys(said.cluster_id, node_id, node.identity_key, node.sealing_key, -1)
        node.announced = judge_rotation(signed, known, now_ms=_FAR_MS).identity_key
    except (ValueError, KeyError, TypeError, RecursionError, DecodeError, NodeKeyError):
        return  # an api_key, a certificate, or nobody's word


def _said(row: ChainRow) -> trust_pb2.NodeAuditHeadStatement | None:
    """What a row signs, verified against the key that it names; None when it is no signature."""
    try:
        signed = trust_pb2.Signed.FromString(bytes.fromhex(json.loads(row.detail)["signed"]))
        said = trust_pb2.NodeAuditHeadStatement.FromString(signed.statement)
        verify_one(signed, domain=Domain.NODE_AUDIT, public_key=said.identity_key)
    except (ValueError, KeyError, TypeError, RecursionError, DecodeError, EnvelopeError):
        return None
    return said if len(said.sealing_key) == PUBLIC_KEY_BYTES else None
