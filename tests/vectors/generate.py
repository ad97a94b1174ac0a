"""Write the golden vectors, or check that the product still makes them (``--check``)."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from fleet import audit_chain, jointoken
from fleet.channel import derive_frame_keys, node_end, server_end
from fleet.envelope import signing_input
from fleet.identity import show_fingerprint
from fleet.node_audit import Begun, BegunBecause, NodeAuditKind, encode_detail, node_row_hash, writer_of
from fleet.sequence import command_digest
from fleet.v1 import command_pb2, enrollment_pb2, gateway_pb2
from tests.vectors import cast, connecting, joining, keys, ordering, story
from tests.vectors.fields import fields_of
from tests.vectors.keys import exchange_key, exchange_public, signer

FOLDER = Path(__file__).parent


def signed() -> dict[str, Any]:
    """The file signed.json."""
    return {
        "statements": [
            {
                "name": statement.name,
                "domain": statement.domain.value,
                "message": statement.message.DESCRIPTOR.full_name,
                "fields": fields_of(statement.message),
                "statement": statement.raw.hex(),
                "statement_sha256": hashlib.sha256(statement.raw).hexdigest(),
                "signing_input_sha256": hashlib.sha256(signing_input(statement.domain, statement.raw)).hexdigest(),
                "signatures": [
                    {"signer": name, "key_id": one.key_id.hex(), "value": one.value.hex()}
                    for name, one in zip(statement.signers, statement.signed().signatures, strict=True)
                ],
                "signed": statement.signed().SerializeToString().hex(),
            }
            for statement in story.statements()
        ]
    }


def channel() -> dict[str, Any]:
    """The file channel.json: frame keys of the story's handshake and the first two frames of each direction."""
    node_statement, server_statement = connecting.handshake().raw, connecting.handshake_server().raw
    private = exchange_key("node-share")
    server_share = exchange_public("server-share")
    frame_keys = derive_frame_keys(private, server_share, node_statement, server_statement)
    node_sealer, _ = node_end(frame_keys)
    server_sealer, _ = server_end(frame_keys)
    return {
        "node_statement": node_statement.hex(),
        "server_statement": server_statement.hex(),
        "shared_secret": private.exchange(X25519PublicKey.from_public_bytes(server_share)).hex(),
        "salt": hashlib.sha256(node_statement + server_statement).hexdigest(),
        "node_to_server_key": frame_keys.node_to_server.hex(),
        "server_to_node_key": frame_keys.server_to_node.hex(),
        "frames": [_frame("s2n", server_sealer.seal(body)) for body in _server_bodies()]
        + [_frame("n2s", node_sealer.seal(body)) for body in _node_bodies()],
    }


def _frame(direction: str, frame: gateway_pb2.ControlFrame) -> dict[str, Any]:
    return {
        "direction": direction,
        "counter": frame.counter,
        "body": frame.body.hex(),
        "mac": frame.mac.hex(),
        "control_frame": frame.SerializeToString().hex(),
    }


def _server_bodies() -> list[bytes]:
    orders = gateway_pb2.ServerControl(commands=command_pb2.CommandFrame(signed=ordering.command().signed()))
    ping = gateway_pb2.Ping(number=1, server_time_ms=cast.NOW_MS, interval_ms=15_000)
    welcome = gateway_pb2.Welcome(
        stream_id="4f2d9c0a7be01836",
        stream_epoch=7,
        server_time_ms=cast.NOW_MS,
        heartbeat_interval_ms=15_000,
        max_frame_bytes=1 << 20,
        max_telemetry_bytes=1 << 16,
        session_expires_at_ms=cast.NOW_MS + 900_000,
        replica_id="replica-1",
    )
    bodies = (gateway_pb2.ServerControl(welcome=welcome), orders, gateway_pb2.ServerControl(ping=ping))
    return [body.SerializeToString() for body in bodies]


def _node_bodies() -> list[bytes]:
    pong = gateway_pb2.Pong(number=1, server_time_ms=cast.NOW_MS, node_time_ms=cast.NOW_MS + 9)
    report = command_pb2.Report(
        report_no=14,
        command_id=ordering.commands()[0].command_id,
        monotonic_seq=41,
        state=command_pb2.COMMAND_STATE_ACCEPTED,
        accepted_at_ms=cast.NOW_MS + 20,
    )
    reports = gateway_pb2.NodeControl(reports=command_pb2.ReportList(reports=[report]))
    return [gateway_pb2.NodeControl(pong=pong).SerializeToString(), reports.SerializeToString()]


def sealing() -> dict[str, Any]:
    """The file sealing.json: an api_key sealed to node-1."""
    return {
        "purpose": "api-key",
        "cluster_id": cast.CLUSTER,
        "node_id": cast.NODE,
        "fingerprint": joining.node_fingerprint().hex(),
        "info": joining.api_key_info().hex(),
        "recipient": "node-1-sealing",
        "ephemeral": "hpke-ephemeral",
        "plaintext": cast.API_KEY,
        "sealed": joining.sealed_api_key().hex(),
    }


def texts() -> dict[str, Any]:
    """The file texts.json: what people copy and compare, and what travels as metadata."""
    owner_pin = hashlib.sha256(signer("owner").public_key).digest()
    token = enrollment_pb2.JoinToken(
        signed=joining.join_token().signed(), secret=cast.TOKEN_SECRET, owner_pin=owner_pin
    )
    return {
        "fingerprint": {
            "identity_key": signer("node-1").public_key.hex(),
            "sealing_key": exchange_public("node-1-sealing").hex(),
            "bytes": joining.node_fingerprint().hex(),
            "text": show_fingerprint(joining.node_fingerprint()),
        },
        "join_token": {
            "secret": cast.TOKEN_SECRET.hex(),
            "owner_pin": owner_pin.hex(),
            "bytes": token.SerializeToString().hex(),
            "text": jointoken.encode(token),
        },
        "session_token": {
            "bytes": cast.SESSION_TOKEN.hex(),
            "metadata": base64.urlsafe_b64encode(cast.SESSION_TOKEN).decode().rstrip("="),
        },
    }


def digests() -> dict[str, Any]:
    """The file digests.json: what makes a command this one."""
    return {
        "commands": [
            {"fields": fields_of(command), "digest": command_digest(command).hex()} for command in ordering.commands()
        ]
    }


def audit() -> dict[str, Any]:
    """The file audit.json: two rows of a replica's chain, and three of a node's as it sends them."""
    rows: list[dict[str, Any]] = []
    previous = audit_chain.FIRST_PREVIOUS_HASH
    for number, (kind, detail) in enumerate(
        (("node.approved", b'{"name":"press-7"}'), ("command.issued", b'{"count":2}')), start=1
    ):
        row: dict[str, Any] = {
            "writer": "replica-a",
            "number": number,
            "at_ms": cast.NOW_MS + number,
            "kind": kind,
            "actor": "anna",
            "subject": cast.NODE,
        }
        hashed = audit_chain.row_hash(previous_hash=previous, detail=detail, **row)
        rows.append(row | {"detail": detail.decode(), "previous_hash": previous.hex(), "hash": hashed.hex()})
        previous = hashed
    return {"rows": rows, "node_rows": _node_rows()}


def _node_rows() -> list[dict[str, Any]]:
    commands = {
        "action": "machine.restart",
        "actor": "anna",
        "digests": [hashlib.sha256(b"some command").hexdigest()],
        "seqs": [41],
    }
    first = (
        (NodeAuditKind.PROCESS_STARTED, encode_detail({"bundle": [1, 7], "version": "1.0.0"})),
        (NodeAuditKind.COMMAND_ACCEPTED, encode_detail({"commands": [commands]})),
        (
            NodeAuditKind.COMMAND_ENDED,
            encode_detail({"results": [{"reason": "", "seqs": [41], "state": "SUCCEEDED"}]}),
        ),
    )
    rows = _chained(0, first)
    agreed, held = (bytes.fromhex(rows[number - 1]["hash"]) for number in (2, 3))
    begun = Begun(0, 2, agreed, 3, held, BegunBecause.ADOPTED)
    return rows + _chained(1, ((NodeAuditKind.CHAIN_BEGUN, begun.detail()), first[2]))


def _chained(chain: int, said: Sequence[tuple[NodeAuditKind, bytes]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    previous = audit_chain.FIRST_PREVIOUS_HASH
    for number, (kind, detail) in enumerate(said, start=1):
        row = gateway_pb2.AuditRow(number=number, at_ms=cast.NOW_MS + number, kind=kind.value, detail=detail)
        row.hash = node_row_hash(cast.NODE, previous, row, chain=chain)
        fields = {"number": number, "at_ms": row.at_ms, "kind": row.kind, "detail": row.detail.decode()}
        hashes = {"previous_hash": previous.hex(), "hash": row.hash.hex()}
        names = {"node_id": cast.NODE, "chain": chain, "writer": writer_of(cast.NODE, chain)}
        rows.append({**names, **fields, **hashes, "audit_row": row.SerializeToString().hex()})
        previous = row.hash
    return rows


def files() -> dict[str, str]:
    """File name -> its text."""
    made = {
        "keys.json": keys.as_json(),
        "signed.json": signed(),
        "channel.json": channel(),
        "sealing.json": sealing(),
        "texts.json": texts(),
        "digests.json": digests(),
        "audit.json": audit(),
    }
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in made.items()}


def stale() -> list[str]:
    """Names of vector files that are missing or say something else than the product."""
    return [
        name
        for name, text in files().items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` name those that changed; the exit code is 1 when there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.vectors.generate", description="Golden vectors")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is not what it should be")
    if parser.parse_args(arguments).check:
        changed = stale()
        for name in changed:
            print(f"{name} does not hold what the product makes. A change here breaks every deployed node.")
        return 1 if changed else 0
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
