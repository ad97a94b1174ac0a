"""Runs: consecutive commands of one node that one order issued, as the streams' senders take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fleet_server.commands import rules
from fleet_server.commands.authority import Authority
from fleet_server.commands.store import NewRow, StandingRow

_SENT = rules.Standing(rules.SENT)


class PendingCommand(NamedTuple):
    """A command whose authority was made or verified by whoever marked it SENT: ready to be signed."""

    command_id: bytes
    seq: int
    actor: str
    issued_at_ms: int
    not_after_ms: int
    action: str
    arguments: bytes


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
        actor, issued_at_ms, specs = self.authority.actor, self.authority.issued_at_ms, self.authority.specs
        return [
            PendingCommand(row.command_id, row.seq, actor, issued_at_ms, row.not_after_ms, *specs[row.spec_no])
            for row in self.rows
        ]

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
            )
            for row in self.rows
        ]
