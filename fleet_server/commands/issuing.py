"""Issue: an operator's request becomes commands, each with its node's next seq, in one transaction.

Everything is decided inside the transaction (who the targets are, what they may be given, which seq is next), so a node
that is suspended or renamed at the same moment is seen either before or after, never half.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.commands import issue_store, protection, rules, store
from fleet_server.commands.authority import Authorities, Authority, encode_specs, read_authority
from fleet_server.commands.changes import Announcer
from fleet_server.commands.issue_store import IdempotencyKeyTakenError, IssueRow
from fleet_server.commands.names import NodeNames
from fleet_server.commands.ports import Rooms
from fleet_server.commands.rules import QUEUED, SENT, Order
from fleet_server.commands.run_store import insert_runs
from fleet_server.commands.runs import Run
from fleet_server.commands.schemas import ActionSchemas, Objection
from fleet_server.commands.store import Connection, NewRow, SeqTakenError
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import NodeActions, NodeRecord, Taken
from fleet_server.nodes.rules import refuse_inactive

_RANDOM_ID_BYTES = 10
_AUDITED_COMMANDS = 1024
_AUDITED_REFUSALS = 1000
_MAX_ATTEMPTS = 3
_COUNTED_AGAIN = 16  # nodes of one order: it costs a look at all that came behind the first open command of each

Refused = list[tuple[NodeRecord, Objection]]


@dataclass(frozen=True, slots=True)
class _Issue:
    """What one attempt puts into the database."""

    authority: Authority
    row: IssueRow
    targets: Sequence[NodeRecord]
    refused: Refused


class Issuing:
    """Use case `issue`.

    Args:
        cluster_id: the cluster whose nodes are commanded; under every MAC.
        max_open_per_node: open commands that a node may have before further ones are refused.
        policy_covers: whether the owner's policy asks for signatures before an action of that name.
    """

    def __init__(
        self,
        rooms: Rooms,
        authorities: Authorities,
        announcer: Announcer,
        names: NodeNames,
        *,
        cluster_id: str,
        max_open_per_node: int,
        policy_covers: protection.PolicyCovers,
    ) -> None:
        self._rooms = rooms
        self._authorities = authorities
        self._announcer = announcer
        self._names = names
        self._cluster_id = cluster_id
        self._max_open_per_node = max_open_per_node
        self._policy_covers = policy_covers
        self._schemas = ActionSchemas()

    async def issue(self, actor: str, request: admin_pb2.IssueCommandsRequest) -> admin_pb2.IssueCommandsResponse:
        """Issue every spec to every target. See `CommandService.issue`."""
        order = rules.check_request(request)
        repair = False
        for _ in range(_MAX_ATTEMPTS):
            try:
                work = partial(self._issue, actor, order, repair)
                answer = await self._rooms.database.write(work, rank=rules.rank(order))
            except IdempotencyKeyTakenError:
                continue  # its holder has committed: the next attempt answers what it did
            except SeqTakenError:
                repair = True
                continue
            if isinstance(answer, Refusal):
                raise answer
            return answer
        raise Refusal(
            Reason.CONFLICT, "rows that the server did not write stand where the next commands belong: check the audit"
        )

    def _issue(
        self, actor: str, order: Order, repair: bool, tx: Transaction
    ) -> admin_pb2.IssueCommandsResponse | Refusal:
        # A refusal is returned, not raised: raising would roll back every other job of the group.
        conn = tx.conn
        if order.idempotency_key is not None:
            earlier = issue_store.find_issue(conn, actor, order.idempotency_key)
            if earlier is not None:
                return self._repeat(conn, earlier, order)
        meant = self._meant(conn, order)
        if isinstance(meant, Refusal):
            return meant
        accepted, refused = meant
        issue = self._draw_up(actor, order, accepted, refused)
        taken = self._take_seqs(tx, issue, repair=repair)
        runs = self._runs(issue, taken)
        rows = [row for run in runs for row in run.rows]
        issue_store.insert_issue(conn, issue.row)
        first_seqs = {node_id: each.first for node_id, each in taken.items()}
        insert_runs(conn, issue.row.issue_id, first_seqs, len(order.specs))
        store.insert_commands(conn, rows)
        self._audit(tx, issue, runs)
        self._authorities.put(issue.authority)
        online = {node.node_id for node in issue.targets if node.online}
        self._announcer.announce_issued(tx, issue.row.issue_id, runs, online)
        handed = sum(len(run.rows) for run in runs if run.rows[0].state == SENT)
        if handed:
            tx.after_commit(lambda: self._observe_sent(issue, handed))
        return _answer(issue, rows, order)

    def refuse(self, conn: Connection, request: admin_pb2.IssueCommandsRequest) -> Refusal | None:
        """Why issuing a request now would give nothing to anybody. See `CommandService.refuse`."""
        try:
            meant = self._meant(conn, rules.check_request(request))
        except Refusal as refusal:
            return refusal
        if isinstance(meant, Refusal):
            return meant
        accepted, refused = meant
        if accepted:
            return None
        node, why = refused[0]
        return Refusal(why.reason, f"{node.name}: {why.detail}")

    def _meant(self, conn: Connection, order: Order) -> tuple[list[NodeRecord], Refused] | Refusal:
        """Nodes that can take an order, and those that cannot."""
        try:
            targets = self._rooms.nodes.resolve(conn, order.patterns)
        except Refusal as refusal:
            return refusal
        if not targets:
            return Refusal(
                Reason.NO_TARGETS,
                f"the command is to nobody: no node matches {', '.join(order.patterns[:5])}; see `fleetctl nodes list`",
            )
        actions = self._rooms.nodes.action_schemas(conn, [node.node_id for node in targets])
        unsigned = protection.refuse_unsigned(order.specs, actions.sets.values(), self._policy_covers)
        if unsigned is not None:
            return unsigned
        unfit = protection.refuse_unfit(
            order.specs, targets, cluster_id=self._cluster_id, now_ms=self._rooms.clock.now_ms()
        )
        if unfit is not None:
            return unfit
        accepted, refused = self._sort(conn, actions, targets, order)
        return rules.check_volume(len(order.specs), len(accepted)) or (accepted, refused)

    def _sort(
        self, conn: Connection, actions: NodeActions, targets: Sequence[NodeRecord], order: Order
    ) -> tuple[list[NodeRecord], Refused]:
        judged: dict[bytes, Objection | None] = {}
        accepted: list[NodeRecord] = []
        refused: Refused = []
        counted_again = 0
        for node in targets:
            objection = self._object_to_node(node, len(order.specs))
            full = objection is not None and objection.reason is Reason.QUEUE_FULL
            if full and self._rooms.shared and counted_again < _COUNTED_AGAIN:
                counted_again += 1  # other replicas may have heard of the end of some
                since = self._announcer.counts.since(node.node_id)
                waiting = store.count_open_of(conn, node.node_id, since)
                objection = self._object_to_queue(waiting, len(order.specs))
            if objection is None:
                digest = actions.of_node.get(node.node_id, b"")
                if digest not in judged:
                    drivers = actions.sets.get(digest)
                    judged[digest] = _NEVER_SEEN if drivers is None else self._schemas.object_to(drivers, order.specs)
                objection = judged[digest]
            if objection is None:
                accepted.append(node)
            else:
                refused.append((node, objection))
        return accepted, refused

    def _object_to_node(self, node: NodeRecord, specs: int) -> Objection | None:
        inactive = refuse_inactive(node)
        if inactive is not None:
            return Objection(inactive.reason, inactive.detail)
        return self._object_to_queue(self._announcer.open_count(node.node_id), specs)

    def _object_to_queue(self, waiting: int, specs: int) -> Objection | None:
        if waiting + specs > self._max_open_per_node:
            return Objection(
                Reason.QUEUE_FULL,
                f"{waiting} commands of this node have not ended; at most {self._max_open_per_node} may be open: "
                "wait for results, or cancel some",
            )
        return None

    def _draw_up(self, actor: str, order: Order, targets: Sequence[NodeRecord], refused: Refused) -> _Issue:
        now_ms = self._rooms.clock.now_ms()
        row = IssueRow(
            issue_id=secrets.token_hex(16),
            cluster_id=self._cluster_id,
            actor=actor,
            idempotency_key=order.idempotency_key,
            request_sha256=order.body_sha256,
            specs=encode_specs(order.specs),
            refused=admin_pb2.IssueCommandsResponse(refused=_refused_targets(refused)).SerializeToString(),
            issued_count=len(targets) * len(order.specs),
            issued_at_ms=now_ms,
            not_after_ms=now_ms + order.ttl_ms,
        )
        return _Issue(read_authority(row), row, targets, refused)

    def _take_seqs(self, tx: Transaction, issue: _Issue, *, repair: bool) -> dict[str, Taken]:
        if not issue.targets:
            return {}
        per_node = len(issue.authority.specs)
        counts = {node.node_id: per_node for node in issue.targets}
        taken = dict(self._rooms.nodes.take_seqs(tx.conn, counts))
        if repair:
            for node_id, each in taken.items():
                taken[node_id] = each._replace(first=self._clear_way(tx, node_id, each.first))
        return taken

    def _clear_way(self, tx: Transaction, node_id: str, first: int) -> int:
        """Make room where rows stand in the way of new seqs; the first seq to use.

        A forged row is taken out, into the audit. A true one means that the node's counter was set back: it moves past.
        """
        standing = store.rows_from(tx.conn, node_id, first)
        authorities = self._authorities.load(tx.conn, [row.issue_id for row in standing])
        forged = [row for row in standing if not self._authorities.intact(authorities.get(row.issue_id), row)]
        self._announcer.audit_forged(tx, forged)
        for row in forged:
            store.delete_command(tx.conn, (row.node_id, row.seq))
        true_seqs = [row.seq for row in standing if row not in forged]
        if not true_seqs:
            return first
        skip = max(true_seqs) + 1 - first
        self._rooms.nodes.take_seqs(tx.conn, {node_id: skip})
        return first + skip

    def _runs(self, issue: _Issue, taken: dict[str, Taken]) -> list[Run]:
        """Rows to insert, by node; SENT are those of a node whose stream waits for them."""
        authority, not_after_ms, issue_id = issue.authority, issue.row.not_after_ms, issue.row.issue_id
        count = len(authority.specs)
        ids = _new_ids(authority.issued_at_ms, count * len(issue.targets))
        seal = self._authorities.seal
        runs: list[Run] = []
        for node in issue.targets:
            node_id, (first, epoch) = node.node_id, taken[node.node_id]
            key_id = self._announcer.handover.key_for(node_id, epoch, first, count)
            state, sent_at_ms = (QUEUED, 0) if key_id is None else (SENT, authority.issued_at_ms)
            rows: list[NewRow] = []
            for spec_no, seq in enumerate(range(first, first + count)):
                command_id = next(ids)
                mac = seal(authority, command_id, node_id, seq, spec_no, not_after_ms)
                rows.append(
                    NewRow(node_id, seq, command_id, issue_id, spec_no, not_after_ms, mac, state, key_id, sent_at_ms)
                )
            runs.append(Run(node_id, epoch, authority, rows))
        return runs

    def _observe_sent(self, issue: _Issue, count: int) -> None:
        self._rooms.metrics.issue_to_sent.observe((self._rooms.clock.now_ms() - issue.row.issued_at_ms) / 1000, count)

    def _audit(self, tx: Transaction, issue: _Issue, runs: Sequence[Run]) -> None:
        actions: dict[str, int] = {}
        for spec in issue.authority.specs:
            actions[spec.action] = actions.get(spec.action, 0) + 1
        # One row for each batch of nodes: a single row may hold only so much.
        nodes = max(1, _AUDITED_COMMANDS // len(issue.authority.specs))
        digest = _digester(issue.authority, issue.row.not_after_ms)
        for no in range(max(1, -(-len(runs) // nodes), -(-len(issue.refused) // _AUDITED_REFUSALS))):
            some = runs[no * nodes :][:nodes]
            refused = issue.refused[no * _AUDITED_REFUSALS :][:_AUDITED_REFUSALS]
            self._rooms.audit.append(
                tx,
                AuditKind.COMMAND_ISSUED if runs else AuditKind.COMMAND_REFUSED,
                actor=issue.row.actor,
                subject=issue.row.issue_id,
                detail={
                    "actions": dict(actions),
                    "authority_sha256": issue.authority.digest.hex(),
                    "digests": {run.node_id: list(map(digest, run.rows)) for run in some},
                    "not_after_ms": issue.row.not_after_ms,
                    "seqs": {run.node_id: [run.rows[0].seq, run.rows[-1].seq] for run in some},
                    "refused": {node.node_id: str(why.reason) for node, why in refused},
                },
            )

    def _repeat(self, conn: Connection, earlier: IssueRow, order: Order) -> admin_pb2.IssueCommandsResponse | Refusal:
        if earlier.request_sha256 != order.body_sha256:
            return Refusal(
                Reason.IDEMPOTENCY_CONFLICT,
                "this idempotency key was used for another request: nothing was issued. Use a new key, or repeat the "
                "request exactly as it was",
                metadata={"issue_id": earlier.issue_id},
            )
        answer = admin_pb2.IssueCommandsResponse.FromString(earlier.refused)
        answer.issue_id = earlier.issue_id
        answer.issued_count = earlier.issued_count
        answer.repeated_request = True
        if not order.summary_only:
            keys = store.keys_of_issue(conn, earlier.issue_id)
            names = self._names.of(conn, {node_id for node_id, _, _ in keys})
            answer.issued.extend(
                admin_pb2.IssuedCommand(
                    command_id=command_id, node_id=node_id, node_name=names.get(node_id, ""), monotonic_seq=seq
                )
                for node_id, seq, command_id in keys
            )
        return answer


def _digester(authority: Authority, not_after_ms: int) -> Callable[[NewRow], str]:
    """Digest of each command as its node has it: what the node's own audit says is held against it."""
    of_spec = [authority.terms(spec_no, not_after_ms).digester() for spec_no in range(len(authority.specs))]
    return lambda row: of_spec[row.spec_no](row.command_id, row.seq).hex()


_NEVER_SEEN = Objection(Reason.UNKNOWN_ACTION, "the node never connected, so what it can do is not known yet")


def _new_ids(at_ms: int, count: int) -> Iterator[bytes]:
    """Command ids: 6 bytes of time and 10 of chance, as in UUID version 7 (RFC 9562), so that their index grows at its
    end: ids of pure chance would have each commit write a page of it for each command."""
    time, random = at_ms.to_bytes(6, "big"), os.urandom(_RANDOM_ID_BYTES * count)
    starts = range(0, len(random), _RANDOM_ID_BYTES)
    return iter(sorted([time + random[start : start + _RANDOM_ID_BYTES] for start in starts]))


def _refused_targets(refused: Refused) -> list[admin_pb2.RefusedTarget]:
    return [
        admin_pb2.RefusedTarget(
            node_id=node.node_id, node_name=node.name, reason=objection.reason, detail=objection.detail
        )
        for node, objection in refused
    ]


def _answer(issue: _Issue, rows: Sequence[NewRow], order: Order) -> admin_pb2.IssueCommandsResponse:
    answer = admin_pb2.IssueCommandsResponse(
        issue_id=issue.row.issue_id, issued_count=len(rows), refused=_refused_targets(issue.refused)
    )
    if not order.summary_only:
        names = {node.node_id: node.name for node in issue.targets}
        answer.issued.extend(
            admin_pb2.IssuedCommand(
                command_id=row.command_id,
                node_id=row.node_id,
                node_name=names[row.node_id],
                monotonic_seq=row.seq,
            )
            for row in rows
        )
    return answer
