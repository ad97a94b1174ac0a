"""Reads a node's audit chain as a server would, and checks that it is one."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.audit_chain import FIRST_PREVIOUS_HASH
from fleet.node_audit import node_row_hash
from fleet.v1 import gateway_pb2
from fleet_node.commands.store import JournalStore


@dataclass
class ReadAudit:
    """What a chain says."""

    rows: list[gateway_pb2.AuditRow] = field(default_factory=list)
    accepted: dict[int, bytes] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    times_ended: Counter[int] = field(default_factory=Counter)

    def kinds(self) -> list[str]:
        return [row.kind for row in self.rows]

    def details(self, kind: str) -> list[Any]:
        return [json.loads(row.detail) for row in self.rows if row.kind == kind]


def read_audit(store: JournalStore, node_id: str, *, after: int = 0) -> ReadAudit:
    """Every row after `after`, hashes and numbers checked from row 1 on."""
    read = ReadAudit()
    previous = FIRST_PREVIOUS_HASH
    store.chain_audit()
    while rows := store.next_audit(0, after):
        for row in rows:
            assert row.number == after + 1, f"row {row.number} follows row {after}"
            assert row.hash == node_row_hash(node_id, previous, row, chain=store.audit.chain), (
                f"row {row.number} is not what was hashed"
            )
            after, previous = row.number, row.hash
            _take(read, row)
    return read


def read_audit_of(path: Path, node_id: str) -> ReadAudit:
    """The same of a journal that nobody has open."""
    store = JournalStore(path, node_id)
    try:
        return read_audit(store, node_id)
    finally:
        store.close()


def _take(read: ReadAudit, row: gateway_pb2.AuditRow) -> None:
    read.rows.append(row)
    detail = json.loads(row.detail)
    if row.kind == "command.accepted":
        for alike in detail["commands"]:
            for seq, digest in zip(alike["seqs"], alike["digests"], strict=True):
                assert seq not in read.accepted, f"seq {seq} was accepted twice"
                read.accepted[seq] = bytes.fromhex(digest)
    elif row.kind == "command.ended":
        for alike in detail["results"]:
            for seq in alike["seqs"]:
                read.ended[seq] = alike["state"]
                read.times_ended[seq] += 1
