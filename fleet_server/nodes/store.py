"""SQL over `nodes` and `node_profiles`, and the check of a node row's MAC before anything in it is believed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from fleet.errors import Reason, Refusal
from fleet_server.database.bulk import EachUpdate, fetch_of
from fleet_server.database.engine import (
    Connection,
    for_change,
    for_change_of_free,
    for_key_share,
    for_update,
    octets,
    sql,
)
from fleet_server.database.statements import fetch
from fleet_server.nodes.ended import EndedMachines
from fleet_server.nodes.record import DrainState, NodeRecord, NodeState, Taken
from fleet_server.nodes.selectors import Hint

CHUNK = 500
_CACHE_ROWS = 50_000
_DRAIN_STATES: Mapping[str, DrainState] = {state.value: state for state in DrainState}
_TAMPERED = "the row was changed outside the server"

_AUTHORITY = (
    "node_id, cluster_id, name, site, identity_key, sealing_key, labels, state, state_reason, enrolled_at_ms, mac"
)
_AUTHORITY_COLUMNS = 11
_COLUMNS = (
    ", ".join(f"n.{column}" for column in _AUTHORITY.split(", "))
    + ", n.last_seq, n.last_accepted_seq, n.stream_epoch, n.stream_id, n.replica_id, n.online, n.last_seen_ms, n.rtt_us"
    ", n.clock_offset_ms, n.drain_state, n.drain_deadline_ms, p.version, p.reported_labels, p.drivers_sha256"
    ", p.max_in_flight, p.bundle_generation, p.bundle_number, p.config_version, n.takeover_of"
)
_SELECT = f"SELECT {_COLUMNS} FROM nodes n LEFT JOIN node_profiles p ON p.node_id = n.node_id"  # noqa: S608 - constants
_DECIDED = EachUpdate(
    "nodes",
    {
        "identity_key": "bytea",
        "sealing_key": "bytea",
        "labels": "text",
        "state": "text",
        "state_reason": "text",
        "mac": "bytea",
        "node_id": "text",
        "read_mac": "bytea",
    },
    "identity_key = v.identity_key, sealing_key = v.sealing_key, labels = v.labels, state = v.state,"
    " state_reason = v.state_reason, mac = v.mac",
    "t.node_id = v.node_id",
    "t.mac = v.read_mac",
)


class RowMac(Protocol):
    """Computes and checks the MAC of one table's rows (fleet_server.trust)."""

    def compute(self, *fields: bytes | str | int) -> bytes:
        """MAC over the fields."""
        ...

    def verify(self, mac: bytes, *fields: bytes | str | int) -> bool:
        """Whether the MAC belongs to the fields, whatever types those have; constant time."""
        ...


def encode_labels(labels: Mapping[str, str]) -> str:
    """The one text of a label set: what is stored and covered by the MAC."""
    return json.dumps(dict(labels), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class NodeStore:
    """Rows of nodes.

    A row is judged once: its MAC check is remembered under the exact values it was made over, so a list of 10,000
    nodes costs no
    10,000 HMACs, and a row that changes by one byte is judged again. Calls may come from any thread.

    Args:
        mac: of the table `nodes`.
        ended: told of machines that are revoked, or whose keys are replaced.
    """

    def __init__(self, mac: RowMac, ended: EndedMachines) -> None:
        self._mac = mac
        self._ended = ended
        self._judged: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}

    def by_id(self, conn: Connection, node_id: str) -> NodeRecord | None:
        """One node."""
        row = conn.exec_driver_sql(sql(conn, f"{_SELECT} WHERE n.node_id = ?"), (node_id,)).first()
        return None if row is None else self._record(tuple(row))

    def by_ids(self, conn: Connection, node_ids: Sequence[str]) -> list[NodeRecord]:
        """Nodes with these ids, in any order."""
        return list(map(self._record, fetch_of(conn, _SELECT, "n.node_id", node_ids)))

    def by_refs(self, conn: Connection, refs: Sequence[str]) -> list[NodeRecord]:
        """Nodes whose name or id is among `refs`, by name."""
        found: dict[str, NodeRecord] = {}
        for chunk in _chunks(sorted(refs)):
            marks = _marks(chunk)
            text = f"{_SELECT} WHERE n.name IN ({marks}) OR n.node_id IN ({marks})"
            for row in fetch(conn, text, (*chunk, *chunk)):
                record = self._record(row)
                found[record.node_id] = record
        return sorted(found.values(), key=lambda record: record.name)

    def page(self, conn: Connection, *, after: str, limit: int) -> list[NodeRecord]:
        """Nodes by name, after a name."""
        text = f"{_SELECT} WHERE n.name > ? ORDER BY n.name LIMIT ?"
        return [self._record(tuple(row)) for row in conn.exec_driver_sql(sql(conn, text), (after, limit))]

    def every(self, conn: Connection, hints: Sequence[Sequence[Hint]] = ()) -> list[NodeRecord]:
        """All nodes, by name; with `hints` at least those that they are about (`Selector.hints`)."""
        where = " OR ".join(" AND ".join(f"n.{hint.column} LIKE ? ESCAPE '!'" for hint in hints_) for hints_ in hints)
        patterns = [hint.pattern for hints_ in hints for hint in hints_]
        text = f"{_SELECT}{where and ' WHERE '}{where} ORDER BY n.name"
        return list(map(self._record, fetch(conn, text, patterns)))

    def insert(self, conn: Connection, record: NodeRecord) -> bool:
        """Add a node; False when its name or its identity key is taken."""
        text = f"INSERT INTO nodes ({_AUTHORITY}) VALUES ({_marks(range(_AUTHORITY_COLUMNS))}) ON CONFLICT DO NOTHING"  # noqa: S608
        return conn.exec_driver_sql(sql(conn, text), self._authority_row(record)).rowcount == 1

    def name_taken(self, conn: Connection, name: str) -> bool:
        """Whether a node has this name."""
        return conn.exec_driver_sql(sql(conn, "SELECT 1 FROM nodes WHERE name = ?"), (name,)).first() is not None

    def holder_of_key(self, conn: Connection, identity_key: bytes) -> str | None:
        """Name of the node with this identity key."""
        text = "SELECT name FROM nodes WHERE identity_key = ?"
        row = conn.exec_driver_sql(sql(conn, text), (identity_key,)).first()
        return None if row is None else str(row[0])

    def names(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, str]:
        """Names by id."""
        found: dict[str, str] = {}
        for chunk in _chunks(node_ids):
            text = f"SELECT node_id, name FROM nodes WHERE node_id IN ({_marks(chunk)})"  # noqa: S608 - marks only
            found |= {row[0]: row[1] for row in conn.exec_driver_sql(sql(conn, text), tuple(chunk))}
        return found

    def current_epoch(self, conn: Connection, node_id: str, *, hold: bool = False) -> int:
        """Epoch of the newest stream; with `hold` no other machine becomes the node before
        the transaction ends (`lock_machine`)."""
        suffix = for_key_share(conn) if hold else ""
        found = fetch(conn, f"SELECT stream_epoch FROM nodes WHERE node_id = ?{suffix}", (node_id,))  # noqa: S608
        return int(found[0][0]) if found else 0

    def lock_machine(self, conn: Connection, node_id: str) -> None:
        """Let nobody else claim anything for a node, and wait for who does: another machine is to be it."""
        fetch(conn, f"SELECT node_id FROM nodes WHERE node_id = ?{for_update(conn)}", (node_id,))  # noqa: S608

    def hold_as_read(self, conn: Connection, records: Sequence[NodeRecord], *, wait: bool) -> dict[str, int | None]:
        """Have nobody else change the rows of nodes until the transaction ends, in the order of `hold`; the epoch of
        the newest stream by id, None where the row does not carry the MAC any more that was verified when `records`
        were read. A node that is gone is missing.

        Args:
            wait: for who holds a row; else a node whose row is held is missing, too.
        """
        read = {record.node_id: record.mac for record in records}
        text = "SELECT node_id, mac, stream_epoch FROM nodes"
        lock = for_change(conn) if wait else for_change_of_free(conn)
        found = fetch_of(conn, text, "node_id", list(read), lock=lock)
        return {node_id: epoch if read[node_id] == mac else None for node_id, mac, epoch in found}

    def update_authority(self, conn: Connection, changed: Sequence[tuple[NodeRecord, NodeRecord]]) -> bool:
        """Write new keys, labels and states with new MACs.

        Args:
            changed: (as read, as it shall be) pairs.

        Returns:
            False when a row is no longer as it was read.
        """
        rows = []
        for before, after in changed:
            identity, sealing, labels, state, reason, *_, mac = self._authority_row(after)[4:]
            rows.append((identity, sealing, labels, state, reason, mac, before.node_id, before.mac))
        if _DECIDED.run(conn, rows) != len(rows):
            return False
        self._ended.note(conn, changed)
        return True

    def key_conflict(self, conn: Connection, changed: NodeRecord, *own: str) -> Refusal | None:
        """Why a node cannot be known by the keys in `changed`: CONFLICT when they are those of a node whose name is not
        among `own`, or were this one's before."""
        holder = self.holder_of_key(conn, changed.identity_key)
        if holder is not None and holder not in own:
            return Refusal(Reason.CONFLICT, f"these keys belong to node {holder!r} already")
        return self._ended.check_new(conn, changed)

    def replace_machine(self, conn: Connection, before: NodeRecord, after: NodeRecord) -> bool:
        """Write the keys and the state of another machine, and end every stream of the former one: its epoch is
        behind from here on, so nothing more is sent on it.

        Returns:
            False when the row is no longer as it was read.
        """
        text = (
            "UPDATE nodes SET identity_key = ?, sealing_key = ?, state = ?, state_reason = ?, enrolled_at_ms = ?,"
            " mac = ?, stream_epoch = stream_epoch + 1, stream_id = '', takeover_of = '', replica_id = '',"
            " online = 0"
            " WHERE node_id = ? AND mac = ?"
        )
        identity, sealing, _, state, reason, enrolled_at_ms, mac = self._authority_row(after)[4:]
        fields = (identity, sealing, state, reason, enrolled_at_ms, mac, before.node_id, before.mac)
        if conn.exec_driver_sql(sql(conn, text), fields).rowcount != 1:
            return False
        self._ended.note(conn, [(before, after)])
        return True

    def note_decided(self, conn: Connection, node_ids: Sequence[str], now_ms: int) -> None:
        """Note that something was decided about nodes. Whatever the clocks of replicas say, its time is later than that
        of each decision that was committed before, so that no two look alike and none is passed over."""
        now_ms = max(now_ms, self.newest_decision_ms(conn) + 1)
        for chunk in _chunks(sorted(node_ids)):
            text = (
                "UPDATE nodes SET decided_at_ms = CASE WHEN decided_at_ms < ? THEN ? ELSE decided_at_ms + 1 END"  # noqa: S608
                f" WHERE node_id IN ({_marks(chunk)})"
            )
            conn.exec_driver_sql(sql(conn, text), (now_ms, now_ms, *chunk))

    def newest_decision_ms(self, conn: Connection) -> int:
        """Time of the last decision about any node, Unix milliseconds; 0 before the first."""
        return int(fetch(conn, "SELECT COALESCE(MAX(decided_at_ms), 0) FROM nodes", ())[0][0])

    def decided_since(self, conn: Connection, since_ms: int) -> list[tuple[str, int]]:
        """(node id, time of the last decision about it in Unix ms) of decisions after a time."""
        return [
            (row[0], row[1])
            for row in fetch(conn, "SELECT node_id, decided_at_ms FROM nodes WHERE decided_at_ms > ?", (since_ms,))
        ]

    def mark_quarantined(self, conn: Connection, node_id: str) -> bool:
        """Put QUARANTINED into a tampered row's state column; its MAC stays wrong. False when it says so already."""
        text = "UPDATE nodes SET state = ? WHERE node_id = ? AND state <> ?"
        state = NodeState.QUARANTINED.value
        return conn.exec_driver_sql(sql(conn, text), (state, node_id, state)).rowcount == 1

    def epochs(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, int]:
        """Epoch of each node's newest stream; a node that is not known is missing."""
        return dict(fetch_of(conn, "SELECT node_id, stream_epoch FROM nodes", "node_id", node_ids))

    def take_seqs(self, conn: Connection, counts: Mapping[str, int]) -> dict[str, Taken]:
        """Raise each node's counter by its count."""
        groups: dict[int, list[str]] = {}
        for node_id in sorted(counts):
            groups.setdefault(counts[node_id], []).append(node_id)
        if len(counts) > 1:
            self.hold(conn, sorted(counts))
        taken: dict[str, Taken] = {}
        for count, node_ids in groups.items():
            for chunk in _chunks(node_ids):
                text = (
                    "UPDATE nodes SET last_seq = last_seq + ?"  # noqa: S608 - only marks are inserted
                    f" WHERE node_id IN ({_marks(chunk)}) RETURNING node_id, last_seq, stream_epoch"
                )
                for node_id, last, epoch in fetch(conn, text, (count, *chunk)):
                    taken[node_id] = Taken(last - count + 1, epoch)
        return taken

    def hold(self, conn: Connection, node_ids: Sequence[str]) -> None:
        """Have nobody else change the rows of nodes until the transaction ends, in one order, so that two replicas do
        not wait for each other in a circle; claims go on. SQLite's writer holds everything already.

        Args:
            node_ids: growing.
        """
        suffix = for_change(conn)
        if suffix:
            for chunk in _chunks(node_ids):
                text = f"SELECT 1 FROM nodes WHERE node_id IN ({_marks(chunk)}) ORDER BY node_id{suffix}"  # noqa: S608
                conn.exec_driver_sql(sql(conn, text), tuple(chunk)).all()

    def _authority_row(self, record: NodeRecord) -> tuple[Any, ...]:
        fields = (
            record.node_id,
            record.cluster_id,
            record.name,
            record.site,
            record.identity_key,
            record.sealing_key,
            encode_labels(record.labels),
            record.state.value,
            record.state_reason,
            record.enrolled_at_ms,
        )
        return (*fields, self._mac.compute(*fields))

    def _record(self, row: tuple[Any, ...]) -> NodeRecord:
        # Positional, in the order of the fields: a list of 10,000 nodes is built in half the time.
        live = row[_AUTHORITY_COLUMNS:]
        fields: tuple[Any, ...] = (
            *self._judge(row[:_AUTHORITY_COLUMNS]),
            *live[:5],
            bool(live[5]),
            *live[6:9],
            _DRAIN_STATES.get(live[9], DrainState.NONE),
            live[10],
            live[11] or "",
            _reported(live[12]),
            live[13] or b"",
            *(number or 0 for number in live[14:18]),
            live[18],
        )
        return NodeRecord(*fields)

    def _judge(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """The first fields of a record, `node_id` to `intact`."""
        known = self._judged.get(row[0])
        if known is not None and known[0] == row:
            return known[1]
        *fields, mac = row
        intact = self._mac.verify(mac, *fields)
        judged = (
            *row[:4],
            octets(row[4]),
            octets(row[5]),
            # What cannot be trusted to be an operator's selects nothing and starts nothing.
            json.loads(row[6]) if intact else {},
            NodeState(row[7]) if intact else NodeState.QUARANTINED,
            row[8] if intact else _TAMPERED,
            row[9] if isinstance(row[9], int) else 0,
            octets(row[10]),
            intact,
        )
        if len(self._judged) >= _CACHE_ROWS:
            self._judged.clear()
        self._judged[row[0]] = (row, judged)
        return judged


@lru_cache(maxsize=4096)
def _reported(text: str | None) -> Mapping[str, str]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}  # no MAC covers it: whatever stands here must not keep anybody from reading the row
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
