"""Report: what nodes say about their commands, recorded once, whatever arrives twice, late, or over an older stream.

Reports of all nodes that wait are judged and written together: one job, one read by command id, one statement for
progress and one for results, one audit row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fleet.logs import get_logger
from fleet.v1 import command_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.commands import rules, store
from fleet_server.commands.authority import Authorities
from fleet_server.commands.changes import Announcer, Change, state_name
from fleet_server.commands.gathering import Gatherer
from fleet_server.commands.history_store import as_reported
from fleet_server.commands.in_hand import InHand, NotAsRememberedError
from fleet_server.commands.ports import Rooms
from fleet_server.commands.rules import Standing
from fleet_server.commands.store import Connection, Key, StandingRow
from fleet_server.database.writer import Transaction
from fleet_server.nodes.ownership import write_as_newest

log = get_logger(__name__)

_MAX_FRAMES_PER_WRITE = 256
_AUDITED_STATES = 2000
_MAX_UNMATCHED = 100  # listed in an audit row, which must have room for what others reported
_MANY_OF_A_NODE = 8
_MAX_SEQ = 2**63 - 1
_SHOWN_CHARS = 200

Frame = tuple[str, Sequence[command_pb2.Report]]
"""(node_id, reports of one frame in report_no order)"""


@dataclass(slots=True)
class _Digest:
    """What a batch of reports comes to.

    Args:
        news: by command id, where each command that moves stood, and stands now.
        unmatched: reports about what is no command of their node.
    """

    news: dict[bytes, tuple[StandingRow, Standing]] = field(default_factory=dict)
    unmatched: list[tuple[str, command_pb2.Report]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Commands that reports are about, by id; what is not the reporting node's own may be among them.

    Args:
        remembered: ids of those that were in hand, so that no row was read.
    """

    by_id: dict[bytes, StandingRow]
    remembered: set[bytes]


class Reports:
    """Use cases of a stream's reader."""

    def __init__(self, rooms: Rooms, authorities: Authorities, announcer: Announcer, retention_ms: int) -> None:
        self._rooms = rooms
        self._authorities = authorities
        self._announcer = announcer
        self._retention_ms = retention_ms
        self._gatherer: Gatherer[Frame] = Gatherer(
            rooms.database.write_nowait, self._record, max_items=_MAX_FRAMES_PER_WRITE
        )

    async def record_reports(self, node_id: str, reports: Sequence[command_pb2.Report]) -> None:
        """See `CommandService.record_reports`."""
        if not reports:
            return
        try:
            await self._gatherer.submit((node_id, reports))
        except NotAsRememberedError:
            self._announcer.in_hand.forget([node_id])
            await self._gatherer.submit((node_id, reports))

    async def record_command_refused(self, node_id: str, epoch: int, refused: command_pb2.CommandRefused) -> None:
        """See `CommandService.record_command_refused`."""
        reason = rules.SEQ_CONFLICT if refused.reason == rules.SEQ_CONFLICT else rules.FORGOTTEN
        log.error(
            "command_refused_by_node",
            node_id=node_id,
            seq=refused.monotonic_seq,
            reason=refused.reason[: rules.MAX_REASON_CHARS],
            detail=refused.detail[:_SHOWN_CHARS],
        )

        def work(tx: Transaction) -> None:
            self._audit_refused(tx, node_id, refused)
            rows = [
                row
                for row in store.standings(tx.conn, [refused.command_id])
                if (row.node_id, row.seq) == (node_id, refused.monotonic_seq)
            ]
            self._announcer.declare_unknown(tx, rows, reason, self._rooms.clock.now_ms())

        await write_as_newest(self._rooms.database, self._rooms.nodes, node_id, epoch, work)

    async def record_statement_refused(self, node_id: str, epoch: int, refused: command_pb2.StatementRefused) -> None:
        """See `CommandService.record_statement_refused`."""

        def work(tx: Transaction) -> None:
            self._rooms.audit.append(
                tx,
                AuditKind.STATEMENT_REFUSED,
                actor=f"node:{node_id}",
                subject=node_id,
                detail={
                    "statement_sha256": refused.statement_sha256[:32].hex(),
                    "key_id": refused.key_id[:16].hex(),
                    "reason": refused.reason[: rules.MAX_REASON_CHARS],
                    "last_accepted_seq": refused.last_accepted_seq,
                    "detail": refused.detail[:_SHOWN_CHARS],
                },
            )

        await write_as_newest(self._rooms.database, self._rooms.nodes, node_id, epoch, work)

    def _record(self, tx: Transaction, frames: Sequence[Frame]) -> None:
        now_ms = self._rooms.clock.now_ms()
        rows = _load(tx.conn, frames, self._announcer.in_hand)
        digest = _digest(rows.by_id, frames, now_ms)
        answers: list[tuple[Key, Standing]] = []
        progress: list[tuple[Key, Standing]] = []
        results: list[tuple[Key, Standing]] = []
        changes: list[Change] = []
        watched = self._announcer.feed.watched
        for row, standing in digest.news.values():
            key, state = row[:2], standing.state
            if row.command_id in rows.remembered:
                answers.append((key, standing))
            else:
                (results if state >= rules.SUCCEEDED else progress).append((key, standing))
            shown = as_reported(row, standing) if watched else None
            changes.append(Change(key, row.issue_id, row.standing.state, state, shown))
        if store.save_answers(tx.conn, answers) != len(answers):
            raise NotAsRememberedError
        store.save_progress(tx.conn, progress)
        store.save_results(tx.conn, results)
        self._audit(tx, digest)
        self._announcer.announce(tx, changes)
        tx.after_commit(lambda: self._observe(changes, digest, now_ms))

    def _audit(self, tx: Transaction, digest: _Digest) -> None:
        news = list(digest.news.values())
        # One row for each batch of states: a single row may hold only so much.
        for start in range(0, max(len(news), 1), _AUDITED_STATES):
            detail = _as_audited(news[start : start + _AUDITED_STATES])
            if digest.unmatched and not start:
                # Results of commands that this database does not know: it went back in time, or the node makes them up.
                detail["unmatched"] = [
                    [node_id, report.monotonic_seq, report.command_id[:16].hex(), state_name(report.state)]
                    for node_id, report in digest.unmatched[:_MAX_UNMATCHED]
                ]
                detail["unmatched_count"] = len(digest.unmatched)
            if detail:
                self._rooms.audit.append(
                    tx, AuditKind.COMMAND_REPORTED, actor=_actor(detail), subject="commands", detail=detail
                )

    def _audit_refused(self, tx: Transaction, node_id: str, refused: command_pb2.CommandRefused) -> None:
        self._rooms.audit.append(
            tx,
            AuditKind.COMMAND_REFUSED,
            actor=f"node:{node_id}",
            subject=refused.command_id[:16].hex(),
            detail={
                "seq": refused.monotonic_seq,
                "reason": refused.reason[: rules.MAX_REASON_CHARS],
                "detail": refused.detail[:_SHOWN_CHARS],
            },
        )

    def _observe(self, changes: Sequence[Change], digest: _Digest, now_ms: int) -> None:
        accepted = Counter(change.issue_id for change in changes if change.was < rules.ACCEPTED)
        ended = Counter(change.issue_id for change in changes if change.now >= rules.SUCCEEDED)
        metrics = self._rooms.metrics
        for histogram, counts in ((metrics.issue_to_accepted, accepted), (metrics.issue_to_result, ended)):
            for issue_id, count in counts.items():
                authority = self._authorities.peek(issue_id)
                if authority is not None:
                    histogram.observe((now_ms - authority.issued_at_ms) / 1000, count)
        for _, report in digest.unmatched:
            old = rules.may_be_forgotten(report.command_id, now_ms, self._retention_ms)
            metrics.unmatched.labels("forgotten" if old else "unknown").inc()
        for node_id, report in digest.unmatched[:10]:
            log.warning("report_matches_no_command", node_id=node_id, seq=report.monotonic_seq, state=report.state)


def _load(conn: Connection, frames: Sequence[Frame], in_hand: InHand) -> _Rows:
    rows = _Rows({}, set())
    few: set[bytes] = set()
    for node_id, reports in frames:
        left = _recall(rows, in_hand.sent(node_id), reports)
        if len(left) < _MANY_OF_A_NODE:
            few.update(report.command_id for report in left)
        else:
            seqs = sorted({min(report.monotonic_seq, _MAX_SEQ) for report in left})
            rows.by_id.update((row.command_id, row) for row in store.standings_of_node(conn, node_id, seqs))
    rows.by_id.update((row.command_id, row) for row in store.standings(conn, few))
    return rows


def _recall(
    rows: _Rows, sent: Mapping[int, StandingRow], reports: Sequence[command_pb2.Report]
) -> Sequence[command_pb2.Report]:
    """Fill in what is in hand of a node; the reports about anything else."""
    left: list[command_pb2.Report] = []
    for report in reports:
        row = sent.get(report.monotonic_seq)
        if row is not None and row.command_id == report.command_id:
            rows.by_id[row.command_id] = row
            rows.remembered.add(row.command_id)
        else:
            left.append(report)
    return left


def _digest(rows: Mapping[bytes, StandingRow], frames: Sequence[Frame], now_ms: int) -> _Digest:
    """Fold the reports, in their order, into one new standing for each command that they move."""
    digest = _Digest()
    news = digest.news
    for node_id, reports in frames:
        for report in reports:
            command_id = report.command_id
            row = rows.get(command_id)
            # All three must fit: a node speaks of its own commands only.
            if row is None or row.node_id != node_id or row.seq != report.monotonic_seq:
                digest.unmatched.append((node_id, report))
                continue
            standing = news[command_id][1] if command_id in news else row.standing
            moved = rules.advance(standing, report, now_ms)
            if moved is not None:
                news[command_id] = (row, moved)
    return digest


def _as_audited(news: Sequence[tuple[StandingRow, Standing]]) -> dict[str, JSON]:
    """New states by node; what the server had declared unknown, and is known after all, stands there as both."""
    nodes: dict[str, dict[str, list[int]]] = {}
    for row, standing in news:
        nodes.setdefault(row.node_id, {}).setdefault(state_name(standing.state), []).append(row.seq)
    detail: dict[str, JSON] = {"nodes": {node_id: {**states} for node_id, states in nodes.items()}} if nodes else {}
    late: list[JSON] = [
        [row.node_id, row.seq, row.standing.reason, state_name(standing.state)]
        for row, standing in news
        if row.standing.declared
    ]
    if late:
        detail["known_after_all"] = late
    return detail


def _actor(detail: Mapping[str, JSON]) -> str:
    nodes = detail.get("nodes")
    return f"node:{next(iter(nodes))}" if isinstance(nodes, Mapping) and len(nodes) == 1 else "nodes"
