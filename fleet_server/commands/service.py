"""The commands room: once, or known to be unknown (docs/protocol.md, "Commands").

Mental model
    An issue is one request; its commands are rows, one for each node and spec, numbered by the node's own counter.
    A row's MAC ties it to its issue, and is checked in the very transaction that marks it SENT or asks for its cancel.
    This room commits and wakes `node:<id>` or `cancel:<id>`, and the stream that owns the node asks for what is
    pending. A stream that waits with nothing to do is handed its next commands instead, by the commit that issued them.
    Only the newest epoch of a node is given anything. State moves forward only. Who may
    move it: the server up to SENT, and to EXPIRED or CANCELLED while it was never signed; from then on the node, whose
    reports are recorded once in whatever order they come. Where nobody can know, the server says INTERRUPTED, and a
    result that turns up after all replaces that word. Jobs run on the writer thread and may run twice: they decide from
    the database alone, and everything in memory (counts, watchers, waiting cancels) changes after the commit, on the
    event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.audit.service import AuditService
from fleet_server.commands.authority import Authorities
from fleet_server.commands.cancels import CancelOrder, Cancels
from fleet_server.commands.changes import Announcer
from fleet_server.commands.delivery import Delivery, Resumption
from fleet_server.commands.following import Following
from fleet_server.commands.handover import FindLane
from fleet_server.commands.issuing import Issuing
from fleet_server.commands.names import NodeNames
from fleet_server.commands.poll import Poll
from fleet_server.commands.ports import NodesPort, Rooms, RowSeal
from fleet_server.commands.protection import PolicyCovers
from fleet_server.commands.queries import MAX_PAGE, Queries
from fleet_server.commands.reports import Reports
from fleet_server.commands.retention import Retention
from fleet_server.commands.runs import PendingCommand
from fleet_server.commands.store import Connection
from fleet_server.commands.sweep import Sweep
from fleet_server.commands.watching import Watching
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.observability.metrics import CommandMetrics

__all__ = ["CancelOrder", "CommandService", "PendingCommand"]

DEFAULT_MAX_OPEN_PER_NODE = 10_000
DEFAULT_RETENTION_S = 90 * 86_400


class CommandService:
    """Everything that the rest of the server does with commands.

    Args:
        cluster_id: the cluster whose nodes are commanded.
        row_mac: MACs of the `commands` table.
        max_open_per_node: open commands that a node may have before further ones are refused with QUEUE_FULL.
        policy_covers: whether the owner's policy asks for signatures before an action of that name.
        retention_s: seconds that an issue is kept after its last command has ended.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        wakeup: Wakeup,
        audit: AuditService,
        nodes: NodesPort,
        metrics: CommandMetrics,
        row_mac: RowSeal,
        cluster_id: str,
        max_open_per_node: int = DEFAULT_MAX_OPEN_PER_NODE,
        policy_covers: PolicyCovers = lambda action: False,
        retention_s: int = DEFAULT_RETENTION_S,
    ) -> None:
        rooms = Rooms(database, clock, wakeup, audit, nodes, metrics)
        authorities = Authorities(row_mac)
        names = NodeNames(nodes)
        self._announcer = Announcer(rooms)
        self._issuing = Issuing(
            rooms,
            authorities,
            self._announcer,
            names,
            cluster_id=cluster_id,
            max_open_per_node=max_open_per_node,
            policy_covers=policy_covers,
        )
        self._delivery = Delivery(rooms, authorities, self._announcer)
        self._reports = Reports(rooms, authorities, self._announcer, retention_s * 1000)
        self._cancels = Cancels(rooms, authorities, self._announcer)
        self._queries = Queries(rooms, authorities, names, retention_s)
        self._following = Following(rooms, self._announcer)
        self._watching = Watching(rooms, self._announcer, self._queries, self._following, retention_s)
        self._poll = Poll(rooms, self._announcer, self._cancels)
        self._sweep = Sweep(rooms, self._announcer, self._delivery, self._cancels)
        self._retention = Retention(rooms, retention_s * 1000)

    async def load(self) -> None:
        """Read what is kept in memory. Once, before anything else is called."""
        await self._sweep.load()

    async def run_expiry(self) -> None:
        """End commands that only time ends, until cancelled: EXPIRED if never signed, INTERRUPTED if nobody answers.
        Forget those that ended long ago."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._sweep.run())
            both.create_task(self._retention.run())

    async def run_poll(self) -> None:
        """Wake the streams of nodes that have something to be sent, and tell watchers what other replicas recorded:
        each second, and when another replica hints at it, until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._poll.run())
            both.create_task(self._following.run())

    async def poll(self) -> None:
        """One round of `run_poll`."""
        await self._poll.poll()
        await self._following.look()

    async def sweep(self) -> None:
        """One round of `run_expiry`."""
        await self._sweep.sweep()

    async def prune(self) -> int:
        """Forget what ended longer ago than the retention; how many commands that were."""
        return await self._retention.prune()

    # -- operators ---------------------------------------------------------------------------------
    async def issue(self, actor: str, request: admin_pb2.IssueCommandsRequest) -> admin_pb2.IssueCommandsResponse:
        """Issue every spec, in order, to every target, in one transaction.

        A node that cannot be given all of them is refused by itself (SUSPENDED, REVOKED, QUARANTINED, UNKNOWN_ACTION,
        ARGUMENTS_INVALID with the place in the arguments, QUEUE_FULL) while the others go on. The same idempotency key
        of the same actor with the same body answers the first result.

        Args:
            actor: operator on whose behalf; authorised by the caller.

        Raises:
            Refusal: NO_TARGETS, INVALID_ARGUMENT, ARGUMENTS_INVALID, ARGUMENTS_TOO_LARGE, IDEMPOTENCY_CONFLICT;
                INTENT_REQUIRED, INTENT_REFUSED;
                CONFLICT
                when forged rows keep standing in the way; UNAVAILABLE while the database is away. Nothing was issued.
        """
        return await self._issuing.issue(actor, request)

    def refuse(self, conn: Connection, request: admin_pb2.IssueCommandsRequest) -> Refusal | None:
        """Why issuing a request now would give nothing to anybody; None when some target takes it. On the writer's
        thread."""
        return self._issuing.refuse(conn, request)

    async def cancel(
        self, actor: str, command_ids: Sequence[bytes] = (), issue_id: str = ""
    ) -> list[admin_pb2.CommandView]:
        """Cancel what was never signed; ask the nodes about the rest (docs/protocol.md, "Cancel").

        Args:
            command_ids: at most 1024 16-byte ids; or
            issue_id: every command of an issue that has not ended.

        Returns:
            What stands now: CANCELLED, or open with `cancel_requested` until the node has answered, or what had ended
            already. At most the first 1000, without outputs.

        Raises:
            Refusal: NOT_FOUND, INVALID_ARGUMENT. Nothing was cancelled.
        """
        keys = await self._cancels.cancel(actor, command_ids, issue_id)
        return await self._queries.by_keys(keys[:MAX_PAGE], brief=True)

    async def get(self, command_id: bytes) -> admin_pb2.CommandView:
        """One command.

        Raises:
            Refusal: NOT_FOUND.
        """
        return await self._queries.get(command_id)

    async def list_page(self, request: admin_pb2.ListCommandsRequest) -> admin_pb2.ListCommandsResponse:
        """A page of commands: of a node newest first, else by issue, newest first, each issue by node and seq.

        Raises:
            Refusal: NOT_FOUND for the node, INVALID_ARGUMENT for the page token.
        """
        return await self._queries.list_page(request)

    def watch(self, request: admin_pb2.WatchCommandsRequest) -> AsyncIterator[admin_pb2.WatchCommandsResponse]:
        """Commands as they change; of an issue, all that there are first. Changes that come faster than they are taken
        fold
        into one. With `until_final` it ends when every command of the issue has ended.

        Raises:
            Refusal: NOT_FOUND for the issue, at the first step.
        """
        return self._watching.watch(request)

    def open_count(self, node_id: str) -> int:
        """Open commands of a node, from memory. Any thread."""
        return self._announcer.open_count(node_id)

    def open_counts(self, conn: Connection, node_ids: Sequence[str]) -> Mapping[str, int]:
        """Open commands of nodes, from memory; for `NodeService.count_open_with`. Any thread."""
        del conn
        return {node_id: self._announcer.open_count(node_id) for node_id in node_ids}

    # -- streams -----------------------------------------------------------------------------------
    def hand_over_to(self, find: FindLane) -> None:
        """Hand new commands to the lanes that wait for them; until then all of them are claimed."""
        self._announcer.handover.connect(find)

    async def claim_pending(
        self,
        node_id: str,
        epoch: int,
        *,
        after_seq: int,
        limit: int,
        key_id: bytes | None = None,
        asked_again_through: int = 0,
    ) -> list[PendingCommand]:
        """What to sign and send next, in seq order; it is SENT once this returns.

        Each command's authority is verified here: a row that fails is QUARANTINED, audited and left out, and so is, as
        EXPIRED, one whose time passed before it was ever signed.

        Args:
            epoch: the stream's; only the node's newest may claim.
            after_seq: highest seq sent on this stream.
            limit: most commands; never more than 32.
            key_id: the command key that will sign, shown to operators.
            asked_again_through: up to this seq, which the node says it accepted, commands that it answered already are
                handed out too: it tells their state again and runs nothing.

        Raises:
            Refusal: SUPERSEDED when a newer stream of the node was opened.
        """
        return await self._delivery.claim_pending(
            node_id,
            epoch,
            after_seq=after_seq,
            limit=limit,
            key_id=key_id,
            asked_again_through=asked_again_through,
        )

    async def reconcile(
        self, node_id: str, epoch: int, last_accepted_seq: int, *, takeover: bool = False
    ) -> Resumption:
        """Where a new stream starts to send, and whether anything may wait there.

        It goes on after `last_accepted_seq`, or less when commands up to it have no result here: sent again, the node
        tells what became of them (or FORGOTTEN, or SEQ_CONFLICT after the database was restored). Commands above it
        that the node once accepted are declared INTERRUPTED: its journal went back in time, and sending them again
        could run them twice.

        Args:
            takeover: the node opened this stream beside one that still serves it, from the same process: its journal
                cannot have gone back, whatever it accepted while it said hello.

        Raises:
            Refusal: SUPERSEDED.
        """
        return await self._delivery.reconcile(node_id, epoch, last_accepted_seq, takeover=takeover)

    def abandon_signed(self, tx: Transaction, node_id: str, replaced: bool) -> int:
        """Another machine may be this node from now on: what was signed to it and has no result is INTERRUPTED, and
        never sent again; the highest seq that was ever signed.

        Args:
            replaced: it surely is another one, with keys of its own.
        """
        return self._delivery.abandon_signed(tx, node_id, replaced)

    async def record_reports(self, node_id: str, reports: Sequence[command_pb2.Report]) -> None:
        """Record what a node says of its commands; durable once this returns, so it may be acknowledged.

        Any stream of the node may deliver, any number of times, in any order: each result is recorded once. Reports
        about commands that are not this node's are ignored and audited.
        """
        await self._reports.record_reports(node_id, reports)

    async def record_command_refused(self, node_id: str, epoch: int, refused: command_pb2.CommandRefused) -> None:
        """The node cannot take a command (SEQ_CONFLICT, FORGOTTEN): INTERRUPTED if it has no result, and loud.

        Raises:
            Refusal: SUPERSEDED when a newer stream was opened, on which the node says it again.
        """
        await self._reports.record_command_refused(node_id, epoch, refused)

    async def record_statement_refused(self, node_id: str, epoch: int, refused: command_pb2.StatementRefused) -> None:
        """The node refused a whole statement: audited; no command's state changes.

        Raises:
            Refusal: SUPERSEDED.
        """
        await self._reports.record_statement_refused(node_id, epoch, refused)

    async def pending_cancels(self, node_id: str, epoch: int) -> list[CancelOrder]:
        """Cancels that the node has not answered, their rows verified. Costs no query while there are none.

        Raises:
            Refusal: SUPERSEDED when a newer stream of the node was opened.
        """
        return await self._cancels.pending_cancels(node_id, epoch)

    async def record_cancel_result(self, node_id: str, epoch: int, result: command_pb2.CancelResult) -> None:
        """Record the node's answer to a cancel; from the first signature on only this decides.

        Raises:
            Refusal: SUPERSEDED when a newer stream was opened, on which the node is asked again.
        """
        await self._cancels.record_cancel_result(node_id, epoch, result)
