"""Runs: consecutive commands of one node that one order issued, as the streams' senders take them.

What an order says is the same for all its nodes, so it is encoded once for all of them: a command in a statement is its
own id and seq before those bytes. Protocol Buffers allow it: the fields of a message, and the messages of a list, may
be encoded one by one and put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import Message

from fleet.v1 import command_pb2
from fleet_server.commands import rules
from fleet_server.commands.authority import Authority, Terms
from fleet_server.commands.store import NewRow, StandingRow

_SENT = rules.Standing(rules.SENT)


def _tag(message: type[Message], field: str, wire_type: int) -> bytes:
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | wire_type])


_VARINT, _BYTES = 0, 2
_ID_BYTES = 16
_IN_STATEMENT = _tag(command_pb2.CommandStatement, "commands", _BYTES)
_ID = _tag(command_pb2.Command, "command_id", _BYTES) + bytes([_ID_BYTES])
_SEQ = _tag(command_pb2.Command, "monotonic_seq", _VARINT)


class PendingCommand(NamedTuple):
    """A command whose authority was made or verified by whoever marked it SENT: ready to be signed."""

    command_id: bytes
    seq: int
    terms: Terms

    @property
    def size_bytes(self) -> int:
        """What it takes in a statement, but for its id, seq and a few lengths."""
        return len(self.terms.encoded)

    def encoded(self) -> bytes:
        """One of the `commands` of a serialised CommandStatement."""
        command = _ID + self.command_id + _SEQ + _varint(self.seq) + self.terms.encoded
        return _IN_STATEMENT + _varint(len(command)) + command


class Run(NamedTuple):
    """Commands of one node with dense seqs, under one authority.

    Args:
        epoch: the node's newest stream when they were issued.
        rows: as they were inserted.
    """

    node_id: str
    epoch: int
    authority: Authority
    rows: Sequence[NewRow]

    def cut(self, after_seq: int, limit: int) -> Run:
        """At most `limit` commands of it above a seq."""
        start = max(0, after_seq + 1 - self.rows[0].seq)
        return self._replace(rows=self.rows[start : start + limit])

    def pending(self) -> list[PendingCommand]:
        """Ready to be signed."""
        terms = self.authority.terms
        return [PendingCommand(row.command_id, row.seq, terms(row.spec_no, row.not_after_ms)) for row in self.rows]

    def sent(self, key_id: bytes | None, sent_at_ms: int) -> list[StandingRow]:
        """Where they stand once they are SENT."""
        return [
            StandingRow(
                row.node_id,
                row.seq,
                row.command_id,
                row.issue_id,
                _SENT,
                row.spec_no,
                row.not_after_ms,
                "",
                key_id,
                sent_at_ms,
                row.mac,
            )
            for row in self.rows
        ]


@lru_cache(maxsize=4096)
def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
