"""What node-1 is ordered to do: people's intent, two commands, a cancel, and the checkpoint over the audit of it."""

from __future__ import annotations

import hashlib
from functools import cache

from fleet.envelope import Domain
from fleet.v1 import command_pb2, trust_pb2
from tests.vectors.cast import ARGUMENTS, CLUSTER, NAME, NODE, NOW_MS, Statement
from tests.vectors.connecting import stream_binding
from tests.vectors.joining import node_fingerprint
from tests.vectors.keys import exchange_public, fixed_bytes, signer


def intent() -> Statement:
    """Two people's wish."""
    return Statement(
        "intent",
        Domain.INTENT,
        ("operator-anna", "operator-ben"),
        trust_pb2.IntentStatement(
            intent_id=fixed_bytes("intent id", 16),
            cluster_id=CLUSTER,
            targets=[trust_pb2.IntentTarget(node_id=NODE, fingerprint=node_fingerprint(), name=NAME)],
            action="host.processes",
            arguments_sha256=hashlib.sha256(ARGUMENTS).digest(),
            issued_at_ms=NOW_MS,
            not_after_ms=NOW_MS + 600_000,
        ),
    )


@cache
def commands() -> tuple[command_pb2.Command, command_pb2.Command]:
    """Two commands; the second carries an intent."""
    plain = command_pb2.Command(
        command_id=fixed_bytes("command 41", 16),
        monotonic_seq=41,
        actor="anna",
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 60_000,
        action="host.info",
        arguments=b"{}",
    )
    with_intent = command_pb2.Command(
        command_id=fixed_bytes("command 42", 16),
        monotonic_seq=42,
        actor="anna",
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 60_000,
        action="host.processes",
        arguments=ARGUMENTS,
        intent=intent().signed(),
    )
    return plain, with_intent


def command() -> Statement:
    """A statement with two commands."""
    return Statement(
        "command",
        Domain.COMMAND,
        ("command-key-1",),
        command_pb2.CommandStatement(
            cluster_id=CLUSTER,
            node_id=NODE,
            stream_binding=stream_binding(),
            lease_epoch=7,
            prev_seq=40,
            commands=commands(),
            signed_at_ms=NOW_MS + 15,
        ),
    )


def cancel() -> Statement:
    """A cancel of the second command."""
    return Statement(
        "cancel",
        Domain.CANCEL,
        ("command-key-1",),
        command_pb2.CancelStatement(
            cluster_id=CLUSTER,
            node_id=NODE,
            stream_binding=stream_binding(),
            command_id=commands()[1].command_id,
            monotonic_seq=42,
            actor="ben",
        ),
    )


def node_audit_head() -> Statement:
    """What a node signs of its own chain."""
    return Statement(
        "node-audit",
        Domain.NODE_AUDIT,
        ("node-1",),
        trust_pb2.NodeAuditHeadStatement(
            node_id=NODE,
            chain=1,
            number=5,
            hash=fixed_bytes("row 5", 32),
            identity_key=signer("node-1").public_key,
            sealing_key=exchange_public("node-1-sealing"),
        ),
    )


def audit_checkpoint() -> Statement:
    """The second checkpoint."""
    return Statement(
        "audit-checkpoint",
        Domain.AUDIT_CHECKPOINT,
        ("authority-1",),
        trust_pb2.AuditCheckpointStatement(
            cluster_id=CLUSTER,
            number=2,
            previous_sha256=fixed_bytes("checkpoint 1", 32),
            heads=[
                trust_pb2.AuditHead(writer=f"node:{NODE}", number=5, hash=fixed_bytes("row 5", 32)),
                trust_pb2.AuditHead(writer="replica-a", number=9, hash=fixed_bytes("row 9", 32)),
            ],
            issued_at_ms=NOW_MS,
        ),
    )
