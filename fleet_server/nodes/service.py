"""Use cases around nodes.

Mental model
    The part of a node's row that confers anything is covered by a MAC and only changes through an operator's verb here.
    Whoever reads a row whose MAC does not fit sees it QUARANTINED at once; the reader notes it, and the next flush
    marks and audits it, because readers cannot write (`directory`).
    What streams leave on the same row, epochs, counters and signs of life, is no decision of anybody (`presence`).
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.identity import show_fingerprint
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.nodes import drain_store, rules, selectors, stream_store
from fleet_server.nodes.checklist import ChecklistItem, checked_tick, general_items
from fleet_server.nodes.presence import NodePresence
from fleet_server.nodes.record import DrainState, NodeRecord, NodeState
from fleet_server.nodes.store import RowMac

_SUBJECTS_PER_ROW = 5000
OnRevoke = Callable[[Transaction, str], Sequence[ChecklistItem]]
OnAdopt = Callable[[Transaction, str, bool], None]


class NodeService(NodePresence):
    """The nodes room.

    Args:
        row_mac: MAC of the table `nodes`.
        replica_id: this replica, whose streams keep nodes online.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        wakeup: Wakeup,
        audit: AuditService,
        row_mac: RowMac,
        replica_id: str,
    ) -> None:
        super().__init__(
            database=database, clock=clock, wakeup=wakeup, audit=audit, row_mac=row_mac, replica_id=replica_id
        )
        self._on_create: list[Callable[[Transaction, str], None]] = []
        self._on_revoke: list[OnRevoke] = []
        self._on_adopt: list[OnAdopt] = []

    def on_create(self, hook: Callable[[Transaction, str], None]) -> None:
        """Run `hook(tx, node_id)` in the transaction that makes a node."""
        self._on_create.append(hook)

    def on_revoke(self, hook: OnRevoke) -> None:
        """Run `hook(tx, node_id)` in the transaction that revokes a node: its credentials end with it. What it did, and
        what is left to do, goes onto the node's checklist."""
        self._on_revoke.append(hook)

    def on_adopt(self, hook: OnAdopt) -> None:
        """Run `hook(tx, node_id, replaced)` in the transaction that adopts a node, or has another machine take its
        place."""
        self._on_adopt.append(hook)

    # -- membership -------------------------------------------------------------------------------------------------
    def create(
        self,
        tx: Transaction,
        *,
        cluster_id: str,
        name: str,
        site: str,
        identity_key: bytes,
        sealing_key: bytes,
        labels: Mapping[str, str],
        unique_suffix: bool = False,
    ) -> NodeRecord:
        """Make a member. The caller audits the decision that led here.

        Args:
            unique_suffix: a name that is taken gets a short suffix instead of a refusal: nobody is there to choose
                another.

        Raises:
            Refusal: INVALID_ARGUMENT for name or labels; CONFLICT when the name or the identity key is taken.
        """
        rules.checked_name(name)
        if self._store.name_taken(tx.conn, name):
            if not unique_suffix:
                raise Refusal(
                    Reason.CONFLICT, f"another node is called {name!r} already: approve it under another name (--name)"
                )
            name = rules.suffixed_name(name, secrets.token_hex(3))
        record = NodeRecord(
            node_id=_new_id(),
            cluster_id=cluster_id,
            name=name,
            site=site,
            identity_key=identity_key,
            sealing_key=sealing_key,
            labels=rules.changed_labels({}, labels, ()),
            state=NodeState.ACTIVE,
            state_reason="",
            enrolled_at_ms=self._clock.now_ms(),
            mac=b"",
            intact=True,
        )
        if not self._store.insert(tx.conn, record):
            holder = self._store.holder_of_key(tx.conn, identity_key)
            raise Refusal(
                Reason.CONFLICT,
                f"these keys belong to node {holder!r} already: a copied disk image needs keys of its own"
                if holder
                else f"another node took the name {name!r} at the same moment: try again",
            )
        for hook in self._on_create:
            hook(tx, record.node_id)
        self._wake(tx, ["nodes"])
        return record

    async def set_state(self, actor: str, patterns: Sequence[str], state: str, reason: str) -> list[NodeRecord]:
        """Suspend, resume or revoke. Nodes that cannot get there keep their state, which the answer shows.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS; CONFLICT when not one of them can get there.
        """
        wanted = rules.settable_state(state)
        rules.checked_reason(reason)
        selector = selectors.parse(patterns)

        def work(tx: Transaction) -> list[NodeRecord]:
            nodes = self._targets(tx.conn, selector)
            able = [node for node in nodes if rules.may_become(node.state, wanted)]
            if not able and not any(node.state is wanted for node in nodes):
                raise rules.refuse_transition(nodes, wanted)
            changed = [(node, replace(node, state=wanted, state_reason=reason, intact=True)) for node in able]
            self._save(tx, changed)
            if wanted is NodeState.REVOKED:
                for node in able:
                    self._revoked(tx, node.node_id)
            self._tell(tx, AuditKind.NODE_STATE_CHANGED, actor, able, {"state": wanted.value, "reason": reason})
            return self._again(tx.conn, nodes)

        return self._views(await self._database.write(work))

    def _revoked(self, tx: Transaction, node_id: str) -> None:
        items = [item for hook in self._on_revoke for item in hook(tx, node_id)]
        self._checklists.add(tx.conn, node_id, [*items, *general_items(self._clock.now_ms())])

    async def checklist(self, ref: str) -> tuple[NodeRecord, list[ChecklistItem]]:
        """A node by name or id, and what is done and left to do since it was revoked; nothing for any other node.

        Raises:
            Refusal: NOT_FOUND.
        """
        node = await self.get(ref)
        return node, await self._database.read(lambda conn: self._checklists.of_node(conn, node.node_id))

    async def tick(self, actor: str, ref: str, item: str, note: str) -> tuple[NodeRecord, list[ChecklistItem]]:
        """Say that an item of a revoked node's checklist is done. One that was done before stays as it was.

        Raises:
            Refusal: NOT_FOUND, INVALID_ARGUMENT.
        """
        node = await self.get(ref)

        def work(tx: Transaction) -> list[ChecklistItem]:
            checked_tick(self._checklists.of_node(tx.conn, node.node_id), item, note)
            now_ms = self._clock.now_ms()
            if self._checklists.tick(tx.conn, node.node_id, item, done_by=actor, note=note, now_ms=now_ms):
                detail: Mapping[str, JSON] = {"item": item, "note": note}
                subject = f"node:{node.node_id}"
                self._audit.append(tx, AuditKind.NODE_CHECKLIST_TICKED, actor=actor, subject=subject, detail=detail)
                self._wake(tx, ["nodes"])
            return self._checklists.of_node(tx.conn, node.node_id)

        items = await self._database.write(work)
        return await self.get(node.node_id), items

    async def adopt(self, actor: str, patterns: Sequence[str], reason: str) -> list[NodeRecord]:
        """Let quarantined nodes back in, each with the machine that comes next; and active ones whose own audit was
        found broken, so that they go on in another chain.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS; CONFLICT when not one of them is such a node with a sound record.
        """
        rules.checked_reason(reason)
        selector = selectors.parse(patterns)

        def work(tx: Transaction) -> list[NodeRecord]:
            nodes = self._targets(tx.conn, selector)
            able = [
                node
                for node in nodes
                if rules.may_be_adopted(node, audit_broken=self._audit.is_broken(tx.conn, node.node_id))
            ]
            if not able:
                raise rules.refuse_adoption(nodes)
            self._save(tx, [(node, replace(node, state=NodeState.ACTIVE, state_reason=reason)) for node in able])
            for node in able:
                self._adopted(tx, node.node_id, replaced=False)
                stream_store.end_streams(tx.conn, node.node_id)
            self._tell(tx, AuditKind.NODE_ADOPTED, actor, able, {"reason": reason})
            return self._again(tx.conn, nodes)

        return self._views(await self._database.write(work))

    def quarantine(self, tx: Transaction, node: NodeRecord, why: str) -> None:
        """Set a node aside until an operator has looked at it; its streams end.

        Raises:
            Refusal: CONFLICT when somebody changed the node at the same moment.
        """
        self._save(tx, [(node, replace(node, state=NodeState.QUARANTINED, state_reason=why))])
        self._tell(tx, AuditKind.NODE_RATCHET_FOREIGN, "server", [node], {"reason": why})

    async def label(
        self, actor: str, patterns: Sequence[str], put: Mapping[str, str], remove: Sequence[str]
    ) -> list[NodeRecord]:
        """Set and remove operator labels.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS, or CONFLICT when only quarantined nodes were meant.
        """
        selector = selectors.parse(patterns)

        def work(tx: Transaction) -> list[NodeRecord]:
            nodes = self._targets(tx.conn, selector)
            # A new MAC over a tampered row would bless what somebody else wrote into it.
            sound = [node for node in nodes if node.intact]
            if not sound:
                raise rules.refuse_transition(nodes, NodeState.ACTIVE)
            changed = [
                (node, replace(node, labels=labels))
                for node in sound
                if (labels := rules.changed_labels(node.labels, put, remove)) != node.labels
            ]
            self._save(tx, changed)
            detail: Mapping[str, JSON] = {"set": dict(put), "removed": list(remove)}
            self._tell(tx, AuditKind.NODE_LABELLED, actor, [node for node, _ in changed], detail)
            return self._again(tx.conn, nodes)

        return self._views(await self._database.write(work))

    def replace_keys(
        self, tx: Transaction, node: NodeRecord, identity_key: bytes, sealing_key: bytes
    ) -> Refusal | None:
        """Know a node by other keys from now on; its id, name, history and seq stay. The caller audits it.

        Returns:
            CONFLICT when the keys are another node's or were this one's, or the row was changed at this moment.
        """
        changed = replace(node, identity_key=identity_key, sealing_key=sealing_key)
        if conflict := self._store.key_conflict(tx.conn, changed, node.name):
            return conflict
        if not self._store.update_authority(tx.conn, [(node, changed)]):
            return Refusal(Reason.CONFLICT, "somebody else changed this node at the same moment: try again")
        return None

    def replace_machine(
        self, tx: Transaction, actor: str, node: NodeRecord, identity_key: bytes, sealing_key: bytes, reason: str
    ) -> NodeRecord:
        """Another machine is the node from now on; id, name, labels, site, history and seq stay. The former one's
        credentials and streams end, what was signed to it and has no result is given up, and a checklist begins, unless
        one of its revocation stands. The caller issues an api_key.

        Raises:
            Refusal: CONFLICT when the node's record was changed outside the server, when the keys are a node's
                already, or were this one's before, or when somebody changed the node at the same moment.
        """
        if not node.intact:
            raise rules.refuse_transition([node], NodeState.ACTIVE)
        changed = replace(
            node,
            identity_key=identity_key,
            sealing_key=sealing_key,
            state=NodeState.ACTIVE,
            state_reason=reason,
            enrolled_at_ms=max(self._clock.now_ms(), node.enrolled_at_ms + 1),
        )
        if conflict := self._store.key_conflict(tx.conn, changed):
            raise conflict
        if not self._store.replace_machine(tx.conn, node, changed):
            raise Refusal(Reason.CONFLICT, "somebody else changed this node at the same moment: try again")
        if node.state is not NodeState.REVOKED:
            self._revoked(tx, node.node_id)
        self._adopted(tx, node.node_id, replaced=True)
        detail: Mapping[str, JSON] = {
            "reason": reason,
            "state": node.state.value,
            "fingerprint": show_fingerprint(changed.fingerprint),
            "former_fingerprint": show_fingerprint(node.fingerprint),
        }
        self._tell(tx, AuditKind.NODE_REPLACED, actor, [node], detail)
        return changed

    def tell_decided(self, tx: Transaction, node_ids: Sequence[str]) -> None:
        """Something was decided about nodes that their streams, on any replica, have to hear of."""
        self._wake_decided(tx, node_ids)

    async def again(self, node_ids: Sequence[str]) -> list[NodeRecord]:
        """Nodes as they stand now, by name."""
        return self._views(
            await self._database.read(lambda conn: self._counted(conn, self._store.by_refs(conn, node_ids)))
        )

    # -- drain ------------------------------------------------------------------------------------------------------
    async def request_drain(
        self, actor: str, patterns: Sequence[str], deadline_s: int, reason: str
    ) -> list[NodeRecord]:
        """Ask nodes to take no new work; the ones that are offline hear it when they come.

        Args:
            deadline_s: seconds that running commands get; 0 means no limit.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS.
        """
        rules.checked_reason(reason)
        deadline_ms = self.now_ms() + deadline_s * 1000 if deadline_s else 0
        detail: Mapping[str, JSON] = {"deadline_s": deadline_s, "reason": reason}
        return await self._drain(
            actor, patterns, DrainState.DRAINING, deadline_ms, AuditKind.NODE_DRAIN_REQUESTED, detail
        )

    async def resume(self, actor: str, patterns: Sequence[str]) -> list[NodeRecord]:
        """End the drain of nodes.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS.
        """
        return await self._drain(actor, patterns, DrainState.NONE, 0, AuditKind.NODE_RESUMED, {})

    # -- inside -----------------------------------------------------------------------------------------------------
    async def _drain(
        self,
        actor: str,
        patterns: Sequence[str],
        state: DrainState,
        deadline_ms: int,
        kind: AuditKind,
        detail: Mapping[str, JSON],
    ) -> list[NodeRecord]:
        selector = selectors.parse(patterns)

        def work(tx: Transaction) -> list[NodeRecord]:
            nodes = self._targets(tx.conn, selector)
            changed = [
                node
                for node in nodes
                if node.drain_state is not state
                and not (state is DrainState.DRAINING and node.drain_state is DrainState.DRAINED)
            ]
            drain_store.set_drain(tx.conn, [node.node_id for node in changed], state, deadline_ms)
            self._tell(tx, kind, actor, changed, detail)
            return self._again(tx.conn, nodes)

        return self._views(await self._database.write(work))

    def _save(self, tx: Transaction, changed: Sequence[tuple[NodeRecord, NodeRecord]]) -> None:
        if not self._store.update_authority(tx.conn, changed):
            raise Refusal(Reason.CONFLICT, "somebody else changed one of these nodes at the same moment: try again")

    def _adopted(self, tx: Transaction, node_id: str, *, replaced: bool) -> None:
        self._store.lock_machine(tx.conn, node_id)
        for hook in self._on_adopt:
            hook(tx, node_id, replaced)

    def _tell(
        self,
        tx: Transaction,
        kind: AuditKind,
        actor: str,
        nodes: Sequence[NodeRecord],
        detail: Mapping[str, JSON],
    ) -> None:
        if not nodes:
            return
        subject = f"node:{nodes[0].node_id}" if len(nodes) == 1 else f"nodes:{len(nodes)}"
        ids = [node.node_id for node in nodes]
        for start in range(0, len(ids), _SUBJECTS_PER_ROW):
            part: Mapping[str, JSON] = {**detail, "nodes": ids[start : start + _SUBJECTS_PER_ROW]}
            self._audit.append(tx, kind, actor=actor, subject=subject, detail=part)
        self._wake_decided(tx, ids)


def _new_id() -> str:
    # An underscore is in no name, so no node can be named like another's id.
    return "nd_" + base64.b32encode(secrets.token_bytes(15)).decode().lower()
