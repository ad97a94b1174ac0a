"""Read the whole audit through its verification, and wait until the server has signed what was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fleet_server.cli.failures import Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet.audit_chain import ChainSummary, ChainVerifier
    from fleet.audit_crosscheck import CrossCheckSummary
    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin

_NAMED = 5
_OVERLAP_ROWS = 1000  # where replicas commit side by side, a row may become visible behind a later one


class AuditReading:
    """One reading.

    Args:
        admin: whose audit it is.
        verifier: takes all of it.
        show: told how many rows were read.
    """

    def __init__(self, admin: Admin, verifier: ChainVerifier, show: Callable[[int], None]) -> None:
        from fleet.audit_crosscheck import CrossCheck
        from fleet.node_signatures import NodeSignatures

        self._admin = admin
        self._verifier = verifier
        self._between = CrossCheck()
        self.signatures = NodeSignatures()
        """Of the nodes, over their own chains."""
        self._show = show
        self._rows = 0
        self._position = 0
        self.alarms = 0
        """How often the server says that its audit was changed around it."""
        self.taken: list[str] = []
        """Rows that a person took for history, and that no server had vouched for."""

    def run(self, signed_within_s: float) -> tuple[ChainSummary, CrossCheckSummary]:
        """Read to the end; what was verified.

        Args:
            signed_within_s: so long a row may wait for a signed checkpoint, once it was read.

        Raises:
            AuditFinding: what is wrong.
            Failure: the server does not answer.
        """
        for change in self._export():
            self._take(change)
        self._verifier.finish()
        self._await_signatures(signed_within_s)
        self.signatures.finish()
        return self._verifier.finish(), self._between.finish()

    def _await_signatures(self, within_s: float) -> None:
        from fleet.audit_findings import RowsUnsigned

        awaited = self._verifier.uncovered()
        if not awaited:
            return
        after = max(self._position - _OVERLAP_ROWS, 0)
        for change in self._until(self._export(after=after, follow=True, timeout_s=within_s)):
            self._take_news(change)
            if not self._verifier.still_uncovered(awaited):
                return
        left = self._verifier.still_uncovered(awaited)
        if left:
            named = ", ".join(f"{writer} up to row {number}" for writer, number in sorted(left.items())[:_NAMED])
            raise RowsUnsigned(f"within {within_s:g} s no signed checkpoint came for {len(left)} chains: {named}")

    def _take(self, change: admin_pb2.ExportAuditResponse) -> None:
        from fleet.node_audit import node_of

        for entry in change.entries:
            self._verifier.add_row(entry)
            self._between.add_row(entry)
            self.signatures.add_row(entry)
            self._position = max(self._position, entry.position)
            self.alarms += entry.kind == "audit.tampered"
            if entry.kind == "database.restored" and node_of(entry.writer) is None:
                self.taken += _taken(entry.detail)
        for checkpoint in change.checkpoints:
            self._verifier.add_checkpoint(checkpoint)
        self._rows += len(change.entries)
        self._show(self._rows)

    def _take_news(self, change: admin_pb2.ExportAuditResponse) -> None:
        news = type(change)(
            entries=[entry for entry in change.entries if not self._verifier.has_row(entry)],
            checkpoints=[signed for signed in change.checkpoints if not self._verifier.has_checkpoint(signed)],
        )
        self._take(news)

    def _export(self, *, timeout_s: float | None = None, **asked: Any) -> Iterator[admin_pb2.ExportAuditResponse]:
        from fleet.v1 import admin_pb2

        request = admin_pb2.ExportAuditRequest(**asked)
        return self._admin.stream(self._admin.stub.ExportAudit, request, timeout_s=timeout_s)

    def _until(self, changes: Iterator[admin_pb2.ExportAuditResponse]) -> Iterator[admin_pb2.ExportAuditResponse]:
        """`changes` until the time is up."""
        import grpc

        try:
            yield from changes
        except Unreachable as failure:
            cause: Any = failure.__cause__
            if not isinstance(cause, grpc.RpcError) or cause.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise


def _taken(detail: bytes) -> Iterator[str]:
    """What a `database.restored` says; nothing where a server in the wrong hands says something else."""
    from fleet.command_rows import NOT_SAID, unvouched_rows

    try:
        for writer, first, last in unvouched_rows(detail):
            yield f"rows {first} to {last} of {writer}"
    except NOT_SAID:
        return
