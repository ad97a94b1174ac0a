"""Approvals: a protected command waits here until enough people have signed its intent, and is then issued.

Mental model
    An approval is named by its intent's id, so proposing it twice is proposing it once. Signatures are added under a
    lock of its row. The one that completes them makes it APPROVED; only after that commit is it issued, under an
    idempotency key of its own: whoever comes back after a crash in between issues the same commands, once.
    People's signatures are not thrown away for what passes: it stays APPROVED, and is issued once that is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from fleet.clock import Clock
from fleet.errors import Advice, Reason, Refusal, advice
from fleet.logs import get_logger
from fleet.people import People
from fleet.v1 import admin_pb2, trust_pb2
from fleet_server.approvals import rules
from fleet_server.approvals.rules import Approval, ApprovalState
from fleet_server.approvals.store import ApprovalStore
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.commands.service import CommandService
from fleet_server.database.engine import Connection, Database, IntegrityError
from fleet_server.database.writer import Transaction
from fleet_server.trust.secrets import RowMac
from fleet_server.trust.service import TrustService

log = get_logger(__name__)

MAX_LISTED = 1000
MAX_LISTED_BYTES = 3 * 1024 * 1024  # gRPC clients take messages of 4 MiB
FINISH_INTERVAL_S = 10.0
PRUNE_INTERVAL_S = 3600.0
_PRUNED_AT_ONCE = 200
_ENTRY_BYTES = 2048  # of names and times, at the least

Outcome = tuple[Approval, admin_pb2.IssueCommandsResponse | None]
_Change = Callable[[Transaction, Approval, People, int], Approval]


class ApprovalService:
    """Use cases around approvals.

    Args:
        trust: whose people are judged by.
        nodes: for the names of targets.
        commands: issues what was approved.
        may_order: whether who proposed a command still may; asked when it is issued.
        row_mac: MAC of the table `approvals`.
        retention_s: seconds that an approval is kept after its intent has ended.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        audit: AuditService,
        trust: TrustService,
        commands: CommandService,
        may_order: Callable[[Connection, str], bool],
        row_mac: RowMac,
        retention_s: int = 90 * 86_400,
    ) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._trust = trust
        self._commands = commands
        self._may_order = may_order
        self._store = ApprovalStore(row_mac)
        self._retention_ms = retention_s * 1000
        self._prune_from = clock.monotonic()
        self._told: set[str] = set()

    async def propose(self, actor: str, request: admin_pb2.ProposeCommandRequest) -> Outcome:
        """Take a command with its signed intent, and issue it if the signatures suffice. The same again, once it was
        issued, answers what was issued.

        Raises:
            Refusal: INVALID_ARGUMENT, INTENT_REFUSED, QUEUE_FULL; as `CommandService.issue`, or a node's own reason
                when no node would take it.
        """
        now_ms = self._clock.now_ms()
        wanted = rules.propose(request, cluster_id=self._trust.cluster_id, actor=actor, now_ms=now_ms)

        def work(tx: Transaction) -> Approval | Refusal:
            people = self._trust.people.verified(tx.conn)
            standing = self._store.by_id(tx.conn, wanted.approval_id, lock=True)
            if standing is not None:
                return _same_or_refusal(standing, wanted)
            if self._store.count_pending(tx.conn, now_ms) >= rules.MAX_PENDING:
                return Refusal(Reason.QUEUE_FULL, "too many commands wait for signatures: reject some")
            if self._store.count_pending(tx.conn, now_ms, actor) >= rules.MAX_PENDING_EACH:
                return Refusal(Reason.QUEUE_FULL, "too many commands of yours wait for signatures: withdraw some")
            try:
                approval = rules.settle(rules.with_known_signers(wanted, people), people, now_ms)
            except Refusal as refusal:
                return refusal
            pointless = self._commands.refuse(tx.conn, _request(wanted))
            if pointless is not None:  # before people take the trouble to sign it
                return pointless
            self._store.insert(tx.conn, approval)
            self._tell(tx, AuditKind.APPROVAL_REQUESTED, actor, approval, people)
            return approval

        try:
            proposed = await self._database.write(work)
        except IntegrityError:  # another replica was asked for the same at this moment: its row is there now
            proposed = await self._database.write(work)
        return await self._issue_approved(_taken(proposed))

    async def sign(self, actor: str, approval_id: str, signature: trust_pb2.Signature) -> Outcome:
        """Add a person's signature, and issue the command if that was the last one needed.

        Raises:
            Refusal: NOT_FOUND, ALREADY_DECIDED, INTENT_REFUSED; as `CommandService.issue` once it is issued.
        """

        def change(tx: Transaction, approval: Approval, people: People, now_ms: int) -> Approval:
            signed = rules.sign(approval, [signature], people, now_ms)
            settled = rules.settle(signed, people, now_ms)
            if settled != approval:
                self._tell(tx, AuditKind.APPROVAL_SIGNED, actor, settled, people, key_id=signature.key_id.hex())
            return settled

        return await self._issue_approved(await self._change(approval_id, change))

    async def close(self, actor: str, approval_id: str, *, withdraw: bool, reason: str) -> Approval:
        """Reject it, or withdraw one's own.

        Raises:
            Refusal: NOT_FOUND, ALREADY_DECIDED, PERMISSION_DENIED, INVALID_ARGUMENT.
        """

        def change(tx: Transaction, approval: Approval, people: People, now_ms: int) -> Approval:
            closed = rules.close(approval, actor=actor, withdraw=withdraw, reason=reason, now_ms=now_ms)
            self._tell(tx, AuditKind.APPROVAL_CLOSED, actor, closed, people, reason=reason)
            return closed

        return await self._change(approval_id, change)

    async def get(self, approval_id: str) -> admin_pb2.ApprovalView:
        """One.

        Raises:
            Refusal: NOT_FOUND.
        """

        def query(conn: Connection) -> admin_pb2.ApprovalView | None:
            found = self._store.by_id(conn, approval_id)
            return None if found is None else self._views(conn, [found])[0]

        view = await self._database.read(query)
        if view is None:
            raise _unknown(approval_id)
        return view

    async def listed(self, *, everything: bool) -> list[admin_pb2.ApprovalView]:
        """Those that wait, or all of them; at most 1000 and 3 MiB of them, newest first."""
        now_ms = self._clock.now_ms()

        def query(conn: Connection) -> list[admin_pb2.ApprovalView]:
            if everything:
                found = self._store.newest(conn, MAX_LISTED)
            else:
                found = self._store.waiting(conn, ApprovalState.PENDING, now_ms, MAX_LISTED)
            return self._views(conn, _that_fit(found))

        return await self._database.read(query)

    async def view(self, approval: Approval) -> admin_pb2.ApprovalView:
        """One as people see it."""
        return (await self._database.read(lambda conn: self._views(conn, [approval])))[0]

    async def run(self) -> None:
        """Issue what was approved and, because a replica went away in between, never issued, and forget what ended
        long ago; until cancelled."""
        while True:
            await self._clock.sleep(FINISH_INTERVAL_S)
            try:
                await self.finish()
                if self._clock.monotonic() >= self._prune_from:
                    await self.prune()
                    self._prune_from = self._clock.monotonic() + PRUNE_INTERVAL_S
            except Refusal as refusal:
                log.warning("approvals_wait", reason=str(refusal.reason), detail=refusal.detail)

    async def prune(self) -> None:
        """Delete approvals whose intents ended long ago, in small batches. The audit keeps what was decided.

        Raises:
            Refusal: the database is away.
        """
        before_ms = self._database.clock.past_ms(self._clock) - self._retention_ms
        while await self._database.write(lambda tx: self._store.forget(tx.conn, before_ms, _PRUNED_AT_ONCE)):
            pass

    async def finish(self) -> None:
        """One round of `run`."""
        now_ms = self._clock.now_ms()
        left = await self._database.read(
            lambda conn: self._store.waiting(conn, ApprovalState.APPROVED, now_ms, MAX_LISTED)
        )
        for approval in left:
            if approval.intact:
                await self._finish_one(approval)

    async def _finish_one(self, approval: Approval) -> None:
        try:
            await self._issue_approved(approval)
        except Refusal as refusal:
            if refusal.reason is Reason.UNAVAILABLE:
                raise
            log.info("approval_not_issued", approval_id=approval.approval_id, reason=str(refusal.reason))

    async def _change(self, approval_id: str, change: _Change) -> Approval:
        now_ms = self._clock.now_ms()

        def work(tx: Transaction) -> Approval | Refusal:
            approval = self._store.by_id(tx.conn, approval_id, lock=True)
            if approval is None:
                return _unknown(approval_id)
            if not approval.intact:
                self._tell_tampered(tx, approval)
            try:
                changed = change(tx, approval, self._trust.people.verified(tx.conn), now_ms)
            except Refusal as refusal:  # raised from here it would roll back the whole group
                return refusal
            self._store.update(tx.conn, changed)
            return changed

        return _taken(await self._database.write(work))

    async def _issue_approved(self, approval: Approval) -> Outcome:
        if approval.state not in (ApprovalState.APPROVED, ApprovalState.ISSUED):
            return approval, None
        try:
            await self._refuse_for_its_proposer(approval)
            issue = await self._commands.issue(approval.created_by, _request(approval))
        except Refusal as refusal:
            if approval.state is ApprovalState.ISSUED or advice(refusal.reason) is not Advice.STOP:
                raise  # `run` tries again, for as long as the intent is good
            await self._end(replace(approval, state=ApprovalState.REJECTED, closed_by="server", reason=refusal.detail))
            raise
        if approval.state is ApprovalState.ISSUED:
            return approval, issue
        issued = replace(approval, state=ApprovalState.ISSUED, issue_id=issue.issue_id)
        await self._end(issued)
        return issued, issue

    async def _refuse_for_its_proposer(self, approval: Approval) -> None:
        name = approval.created_by
        if approval.state is ApprovalState.APPROVED and not await self._database.read(
            lambda conn: self._may_order(conn, name)
        ):
            raise Refusal(Reason.PERMISSION_DENIED, f"{name}, who proposed it, may order nothing any more: run it anew")

    async def _end(self, ended: Approval) -> None:
        """Only what is APPROVED ends: a replica that was late ends nothing otherwise."""
        ended = replace(ended, reason=ended.reason[: rules.MAX_REASON_CHARS])
        kind = AuditKind.APPROVAL_ISSUED if ended.state is ApprovalState.ISSUED else AuditKind.APPROVAL_CLOSED

        def work(tx: Transaction) -> None:
            standing = self._store.by_id(tx.conn, ended.approval_id, lock=True)
            if standing is not None and standing.intact and standing.state is ApprovalState.APPROVED:
                self._store.update(tx.conn, ended)
                detail = {"issue_id": ended.issue_id} if ended.issue_id else {"reason": ended.reason}
                self._tell(tx, kind, "server", ended, self._trust.people.verified(tx.conn), **detail)

        await self._database.write(work)

    def _views(self, conn: Connection, approvals: Sequence[Approval]) -> list[admin_pb2.ApprovalView]:
        people, now_ms = self._trust.people.verified(conn), self._clock.now_ms()
        return [_view(each, people, now_ms) for each in approvals]

    def _tell(
        self, tx: Transaction, kind: AuditKind, actor: str, approval: Approval, people: People, **more: JSON
    ) -> None:
        detail: dict[str, JSON] = {
            "action": approval.action,
            "state": str(approval.state),
            "signers": list(rules.signer_names(approval, people)),
            "nodes": len(approval.statement.targets),
            **more,
        }
        self._audit.append(tx, kind, actor=actor, subject=approval.approval_id, detail=detail)

    def _tell_tampered(self, tx: Transaction, approval: Approval) -> None:
        if approval.approval_id not in self._told:
            self._told.add(approval.approval_id)
            log.error("approval_row_tampered", approval_id=approval.approval_id)
            self._audit.append(
                tx, AuditKind.APPROVAL_QUARANTINED, actor="server", subject=approval.approval_id, detail={}
            )


def _that_fit(approvals: Sequence[Approval]) -> list[Approval]:
    sizes = accumulate(len(each.arguments) + len(each.intent) + _ENTRY_BYTES for each in approvals)
    return [each for each, size in zip(approvals, sizes, strict=True) if size <= MAX_LISTED_BYTES]


def _request(approval: Approval) -> admin_pb2.IssueCommandsRequest:
    return admin_pb2.IssueCommandsRequest(
        selector=admin_pb2.Selector(patterns=[target.node_id for target in approval.statement.targets]),
        commands=[approval.spec],
        ttl_s=approval.ttl_s,
        idempotency_key=f"approval/{approval.approval_id}",
    )


def _view(approval: Approval, people: People, now_ms: int) -> admin_pb2.ApprovalView:
    view = admin_pb2.ApprovalView(
        approval_id=approval.approval_id,
        state=str(approval.shown_state(now_ms)),
        created_by=approval.created_by,
        created_at_ms=approval.created_at_ms,
        expires_at_ms=approval.expires_at_ms,
        issue_id=approval.issue_id,
        closed_by=approval.closed_by,
        reason=approval.reason,
    )
    if not approval.intact:
        return view
    view.command.CopyFrom(approval.spec)
    view.signers.extend(rules.signer_names(approval, people))
    policy = people.policy_in_force
    rule = None if policy is None else policy.rule_for(approval.action)
    if rule is not None:
        view.required = rule.required
        view.roles.extend(sorted(rule.roles))
    return view


def _same_or_refusal(standing: Approval, wanted: Approval) -> Approval | Refusal:
    if not standing.intact:
        return Refusal(Reason.QUARANTINED, "this approval was changed around the server: it is used for nothing")
    same = (standing.signed.statement, standing.arguments) == (wanted.signed.statement, wanted.arguments)
    if not same or standing.created_by != wanted.created_by:
        return Refusal(Reason.CONFLICT, "another command with this intent's id was proposed already: sign a new intent")
    return standing


def _taken(answer: Approval | Refusal) -> Approval:
    if isinstance(answer, Refusal):
        raise answer
    return answer


def _unknown(approval_id: str) -> Refusal:
    return Refusal(Reason.NOT_FOUND, f"there is no approval {approval_id[:64]!r}: see `fleetctl approvals list`")
