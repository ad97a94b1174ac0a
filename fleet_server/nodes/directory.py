"""Finding nodes: by id, name or selector, each row's MAC checked, with what other rooms and the liveness in memory
know about them.

Readers cannot write, so a row whose MAC does not fit is shown QUARANTINED at once, noted, and marked and audited with
the next flush.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.nodes import selectors
from fleet_server.nodes.checklist_store import ChecklistStore
from fleet_server.nodes.ended import EndedMachines
from fleet_server.nodes.liveness import Liveness
from fleet_server.nodes.poll import DecisionPoll
from fleet_server.nodes.profile_store import ProfileStore
from fleet_server.nodes.record import NodeActions, NodeRecord
from fleet_server.nodes.selectors import Selector
from fleet_server.nodes.store import NodeStore, RowMac

log = get_logger(__name__)

OpenCounts = Callable[[Connection, Sequence[str]], Mapping[str, int]]
Rotating = Callable[[Connection, Sequence[str]], Mapping[str, tuple[str, ...]]]
OnDecided = Callable[[Transaction, Sequence[str]], None]
_PAGE = 1000
_HINT_PAUSE_S = 0.05


class NodeDirectory:
    """The reading half of the nodes room.

    Args:
        row_mac: MAC of the table `nodes`.
    """

    def __init__(
        self, *, database: Database, clock: Clock, wakeup: Wakeup, audit: AuditService, row_mac: RowMac
    ) -> None:
        self._clock = clock
        self._database = database
        self._wakeup = wakeup
        self._audit = audit
        self._ended = EndedMachines(audit.spent)
        self._store = NodeStore(row_mac, self._ended)
        self._profiles = ProfileStore()
        self._checklists = ChecklistStore()
        self._liveness = Liveness()
        self._tampered: deque[str] = deque(maxlen=10_000)
        self._told: set[str] = set()
        self._open_counts: OpenCounts = _no_open_counts
        self._rotating: Rotating = _nothing_rotating
        self._on_decided: list[OnDecided] = []
        self.decisions = 0
        """Decisions about nodes that were committed here, or found to have been elsewhere: who read a row before one
        has to read it again."""
        self._poll = DecisionPoll(database=database, clock=clock, store=self._store, decided=self._decided_elsewhere)
        wakeup.on_hint("node-state", lambda _: self._poll.poll_now(), pause_s=_HINT_PAUSE_S)
        wakeup.on_hint("nodes", lambda _: wakeup.wake_nowait(["nodes"]), pause_s=_HINT_PAUSE_S)

    async def run_decisions(self) -> None:
        """Look for decisions that were made on other replicas, until cancelled."""
        await self._poll.run()

    def count_open_with(self, open_counts: OpenCounts) -> None:
        """Let the commands room say how many commands wait or run on each node."""
        self._open_counts = open_counts

    def show_rotating_with(self, rotating: Rotating) -> None:
        """Let the sessions room say which credentials of which nodes are being replaced."""
        self._rotating = rotating

    def on_decided(self, hook: OnDecided) -> None:
        """Run `hook(tx, node_ids)` in each transaction that decides something about nodes: their state, their keys,
        whether they take work."""
        self._on_decided.append(hook)

    def load_all(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, NodeRecord]:
        """As `load`, of several, by id; one that is not known is missing. Any thread."""
        return {record.node_id: self._seen(record) for record in self._store.by_ids(conn, node_ids)}

    def load(self, conn: Connection, node_id: str) -> NodeRecord | None:
        """One node, its MAC checked; a row that fails is QUARANTINED in the answer. Any thread."""
        record = self._store.by_id(conn, node_id)
        return None if record is None else self._seen(record)

    def load_to_admit(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, NodeRecord | Refusal]:
        """Nodes whose machines ask to be let in: as `load`, and QUARANTINED when a row is that of a machine that was
        revoked or replaced, put back around the server; UNAVAILABLE for one that was revoked or replaced at this
        moment. One that is not known is missing. Any thread.
        """
        records = self._store.by_ids(conn, node_ids)
        return {
            record.node_id: judged if isinstance(judged, Refusal) else self._seen(judged)
            for record, judged in zip(records, self._ended.judged(conn, records), strict=True)
        }

    async def get(self, ref: str) -> NodeRecord:
        """A node by name or id.

        Raises:
            Refusal: NOT_FOUND.
        """
        records = await self._database.read(lambda conn: self._counted(conn, self._store.by_refs(conn, [ref])))
        if not records:
            raise Refusal(Reason.NOT_FOUND, f"no node is called {ref[:80]!r}: `fleetctl nodes list` shows them all")
        return self._views(records)[0]

    async def select(self, patterns: Sequence[str], *, after: str = "", limit: int = 100) -> list[NodeRecord]:
        """A page of the nodes that a selector means, by name; no pattern means every node.

        Args:
            patterns: see `selectors`.
            after: name of the last node of the previous page.
            limit: most nodes.

        Raises:
            Refusal: INVALID_ARGUMENT for a pattern, NO_TARGETS when an exact name or id is not known.
        """
        selector = selectors.parse(patterns or ["*"])
        records = await self._database.read(
            lambda conn: self._counted(conn, self._page(conn, selector, after=after, limit=limit))
        )
        return self._views(records)

    def resolve(self, conn: Connection, patterns: Sequence[str]) -> list[NodeRecord]:
        """Every node that a selector means, by name; revoked ones too, for their refusal is the caller's to word. Any
        thread.

        Raises:
            Refusal: as `select`.
        """
        return self._resolve(conn, selectors.parse(patterns))

    async def drivers(self, node_id: str) -> tuple[gateway_pb2.DriverDescriptor, ...]:
        """What a node offers; empty before its first stream."""
        actions = await self._database.read(lambda conn: self._profiles.actions(conn, [node_id]))
        found = actions.sets.get(actions.of_node.get(node_id, b""))
        return () if found is None else found.drivers

    def action_schemas(self, conn: Connection, node_ids: Sequence[str]) -> NodeActions:
        """What nodes offer, grouped by driver set. Any thread."""
        return self._profiles.actions(conn, node_ids)

    async def names_of(self, node_ids: Sequence[str]) -> dict[str, str]:
        """Names by id; a node that is not known is missing."""
        return await self._database.read(lambda conn: self._store.names(conn, node_ids))

    def names(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, str]:
        """Names by id; a node that is not known is missing. Any thread."""
        return self._store.names(conn, node_ids)

    def current_epoch(self, conn: Connection, node_id: str, *, hold: bool = False) -> int:
        """Epoch of a node's newest stream; 0 when it never had one. With `hold` no other machine becomes the node,
        at any replica, before the transaction ends. Any thread."""
        return self._store.current_epoch(conn, node_id, hold=hold)

    def epochs(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, int]:
        """Epoch of each node's newest stream; a node that is not known is missing. Any thread."""
        return self._store.epochs(conn, node_ids)

    async def newest_epochs(self, node_ids: Sequence[str]) -> dict[str, int]:
        """As `epochs`, by itself."""
        return await self._database.read(lambda conn: self._store.epochs(conn, node_ids))

    async def bundle_holders(self) -> dict[tuple[int, int], int]:
        """Trust bundle version -> nodes that hold it, as last told."""
        return await self._database.read(self._profiles.holders)

    def bundle_holdings(
        self, conn: Connection, site: str, seen_since_ms: int
    ) -> list[tuple[tuple[int, int], int, int, str]]:
        """See `ProfileStore.holdings`. Any thread."""
        return self._profiles.holdings(conn, site, seen_since_ms)

    def key_holder(self, conn: Connection, identity_key: bytes) -> str | None:
        """Name of the node with this identity key, revoked ones among them. Any thread."""
        return self._store.holder_of_key(conn, identity_key)

    async def _mark_tampered(self) -> None:
        noted = set()
        while self._tampered:
            noted.add(self._tampered.popleft())

        def work(tx: Transaction) -> None:
            for node_id in sorted(noted):
                if self._store.mark_quarantined(tx.conn, node_id) or node_id not in self._told:
                    subject = f"node:{node_id}"
                    detail = {"table": "nodes", "row": node_id}
                    self._audit.append(tx, AuditKind.NODE_QUARANTINED, actor="server", subject=subject, detail=detail)
                    self._wake_decided(tx, [node_id])

        if noted:
            try:
                await self._database.write(work)
            except Refusal:
                self._tampered.extend(noted)
                raise
            self._told |= noted

    def _seen(self, record: NodeRecord) -> NodeRecord:
        if record.intact:
            self._told.discard(record.node_id)  # an operator has settled it: another deed is news again
        elif record.node_id not in self._told:
            self._tampered.append(record.node_id)
            log.error("node_row_tampered", node_id=record.node_id)
        return record

    def _page(self, conn: Connection, selector: Selector, *, after: str, limit: int) -> list[NodeRecord]:
        if selector.names_only:
            return [node for node in self._resolve(conn, selector) if node.name > after][:limit]
        found: list[NodeRecord] = []
        while len(found) < limit:
            page = self._store.page(conn, after=after, limit=_PAGE if not selector.everything else limit - len(found))
            found += [self._seen(node) for node in page if selector.matches(node)]
            if not page or selector.everything:
                break
            after = page[-1].name
        return found[:limit]

    def _resolve(self, conn: Connection, selector: Selector) -> list[NodeRecord]:
        if selector.names_only:
            nodes = self._store.by_refs(conn, sorted(selector.exact))
        else:
            nodes = [node for node in self._store.every(conn, selector.hints()) if selector.matches(node)]
        missing = selector.missing(nodes)
        if missing:
            raise Refusal(
                Reason.NO_TARGETS,
                f"no node is called {missing[0]!r}: `fleetctl nodes list` shows them all",
                metadata={"pattern": missing[0]},
            )
        return [self._seen(node) for node in nodes]

    def _targets(self, conn: Connection, selector: Selector) -> list[NodeRecord]:
        nodes = self._resolve(conn, selector)
        if not nodes:
            raise Refusal(Reason.NO_TARGETS, "no node matches: `fleetctl nodes list` shows names and labels")
        return nodes

    def _again(self, conn: Connection, nodes: Sequence[NodeRecord]) -> list[NodeRecord]:
        return self._counted(conn, self._store.by_refs(conn, [node.node_id for node in nodes]))

    def _counted(self, conn: Connection, nodes: Sequence[NodeRecord]) -> list[NodeRecord]:
        if not nodes:
            return []
        # Of these nodes alone: when something is decided about a fleet, each of its streams reads its own.
        ids = [node.node_id for node in nodes]
        counts, rotating = self._open_counts(conn, ids), self._rotating(conn, ids)
        left = self._checklists.open_counts(conn, ids)
        return [
            replace(
                node,
                open_commands=counts.get(node.node_id, 0),
                rotating=rotating.get(node.node_id, ()),
                checklist_open=left.get(node.node_id, 0),
            )
            if node.node_id in counts or node.node_id in rotating or node.node_id in left
            else node
            for node in nodes
        ]

    def _views(self, nodes: Sequence[NodeRecord]) -> list[NodeRecord]:
        return [self._fresh(self._seen(node)) for node in nodes]

    def _fresh(self, node: NodeRecord) -> NodeRecord:
        sign = self._liveness.peek(node.node_id)
        if sign is None or sign.epoch != node.stream_epoch or sign.seen_ms < node.last_seen_ms:
            return node
        return replace(
            node,
            last_seen_ms=sign.seen_ms,
            rtt_us=sign.rtt_us,
            clock_offset_ms=sign.clock_offset_ms,
            last_accepted_seq=max(node.last_accepted_seq, sign.accepted_seq),
        )

    def _wake_decided(self, tx: Transaction, node_ids: Sequence[str]) -> None:
        self._store.note_decided(tx.conn, node_ids, self._clock.now_ms())
        for hook in self._on_decided:
            hook(tx, node_ids)
        tx.after_commit(self._decided)
        self._wake(tx, [f"node-state:{node_id}" for node_id in node_ids] + ["nodes"])
        tx.after_commit(lambda: self._wakeup.tell_others_nowait(["node-state"]))

    def _decided(self) -> None:
        self.decisions += 1

    def _decided_elsewhere(self, node_ids: Sequence[str]) -> None:
        self._decided()
        self._wakeup.wake_nowait([*(f"node-state:{node_id}" for node_id in node_ids), "nodes"])

    def _wake(self, tx: Transaction, topics: Iterable[str]) -> None:
        woken = list(topics)
        tx.after_commit(lambda: self._woken(woken))

    def _woken(self, topics: Sequence[str]) -> None:
        self._wakeup.wake_nowait(topics)
        if "nodes" in topics:
            self._wakeup.tell_others_nowait(["nodes"])


def _nothing_rotating(_conn: Connection, _node_ids: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    return {}


def _no_open_counts(_conn: Connection, _node_ids: Sequence[str]) -> Mapping[str, int]:
    return {}
