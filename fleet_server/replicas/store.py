"""SQL over `replicas`."""

from __future__ import annotations

from typing import Any

from fleet.v1 import gateway_pb2
from fleet_server.database.engine import Connection, for_update, sql
from fleet_server.database.replica_schema import REVISION
from fleet_server.replicas.rules import DrainRequest, Holder, ReplicaRecord, ReplicaState, Vitals

_COLUMNS = (
    "replica_id, version, state, streams, admission_per_s, started_at_ms, heartbeat_at_ms, drain_requested_at_ms,"
    " drain_deadline_ms, drain_reason, secret_keys, tls_cas, max_streams, admitted_per_s, endpoints"
)


def holder(conn: Connection, replica_id: str) -> Holder | None:
    """Which process has this id."""
    text = "SELECT boot_id, state, heartbeat_at_ms FROM replicas WHERE replica_id = ?"
    row = conn.exec_driver_sql(sql(conn, text), (replica_id,)).first()
    return None if row is None else Holder(row[0], ReplicaState(row[1]), row[2])


def claim(conn: Connection, replica_id: str, boot_id: str, before: Holder | None, *, version: str, now_ms: int) -> bool:
    """Have a process have this id; False when the row is not as `before` says. A drain that was asked of the process
    before is none of its own; who follows one that is asked from now on has to know this process from that one."""
    since = ", ".join(
        f"{column} = CASE WHEN replicas.boot_id = excluded.boot_id THEN replicas.{column} ELSE excluded.{column} END"
        for column in ("started_at_ms", "drain_requested_at_ms", "drain_deadline_ms", "drain_reason")
    )
    text = (
        f"INSERT INTO replicas ({_COLUMNS}, boot_id, commit_mark)"  # noqa: S608 - constants
        " VALUES (?, ?, ?, 0, 0, ?, ?, 0, 0, 0, '', '', 0, 0, '', ?, ?)"
        " ON CONFLICT (replica_id) DO UPDATE SET boot_id = excluded.boot_id, state = excluded.state,"
        f" heartbeat_at_ms = excluded.heartbeat_at_ms, {since}"
        " WHERE replicas.boot_id = ? AND replicas.heartbeat_at_ms = ? OR replicas.boot_id = excluded.boot_id"
    )
    expected = (boot_id, now_ms) if before is None else (before.boot_id, before.heartbeat_at_ms)
    fields = (replica_id, version, ReplicaState.STARTING.value, now_ms, now_ms, boot_id, now_ms, *expected)
    return conn.exec_driver_sql(sql(conn, text), fields).rowcount == 1


def register(
    conn: Connection, replica_id: str, boot_id: str, *, version: str, secret_keys: str, tls_cas: str, now_ms: int
) -> bool:
    """Write the row of a process that starts; False when another process has the id. What was asked of it since it has
    the id stays."""
    text = (
        f"INSERT INTO replicas ({_COLUMNS}, boot_id, commit_mark, schema_revision)"  # noqa: S608 - constants
        " VALUES (?, ?, ?, 0, 0, ?, ?, 0, 0, 0, ?, ?, 0, 0, '', ?, ?, ?)"
        " ON CONFLICT (replica_id) DO UPDATE SET version = excluded.version, state = excluded.state, streams = 0,"
        " admission_per_s = 0, admitted_per_s = 0, heartbeat_at_ms = excluded.heartbeat_at_ms,"
        " secret_keys = excluded.secret_keys, tls_cas = excluded.tls_cas, schema_revision = excluded.schema_revision"
        " WHERE replicas.boot_id = excluded.boot_id"
    )
    said = (secret_keys, tls_cas, boot_id, now_ms, REVISION)
    fields = (replica_id, version, ReplicaState.STARTING.value, now_ms, now_ms, *said)
    return conn.exec_driver_sql(sql(conn, text), fields).rowcount == 1


def beat(
    conn: Connection,
    replica_id: str,
    boot_id: str,
    *,
    state: ReplicaState,
    vitals: Vitals,
    secret_keys: str,
    tls_cas: str,
    now_ms: int,
) -> bool:
    """Say that this replica lives; False when it has no row, or another process has its id."""
    text = (
        "UPDATE replicas SET state = ?, streams = ?, max_streams = ?, admission_per_s = ?, admitted_per_s = ?,"
        " endpoints = ?, secret_keys = ?, tls_cas = ?, heartbeat_at_ms = ?"
        " WHERE replica_id = ? AND boot_id = ?"
    )
    measured = (vitals.streams, vitals.max_streams, vitals.admission_per_s, vitals.admitted_per_s)
    fields = (state.value, *measured, ",".join(vitals.endpoints), secret_keys, tls_cas, now_ms, replica_id, boot_id)
    return conn.exec_driver_sql(sql(conn, text), fields).rowcount == 1


def is_lost(conn: Connection, replica_id: str) -> bool:
    """Whether the others took it for lost; until the transaction ends, none of them does from now on."""
    text = "SELECT state FROM replicas WHERE replica_id = ?"
    return conn.exec_driver_sql(sql(conn, text + for_update(conn)), (replica_id,)).scalar() == ReplicaState.LOST.value


def every(conn: Connection, *, lock: bool = False) -> list[ReplicaRecord]:
    """All replicas, by id.

    Args:
        lock: no other transaction changes any of them before this one ends.
    """
    text = f"SELECT {_COLUMNS} FROM replicas ORDER BY replica_id"  # noqa: S608 - constants
    rows = conn.exec_driver_sql(sql(conn, text + for_update(conn) if lock else text))
    return [_record(tuple(row)) for row in rows]


def by_id(conn: Connection, replica_id: str) -> ReplicaRecord | None:
    """One replica."""
    text = f"SELECT {_COLUMNS} FROM replicas WHERE replica_id = ?"  # noqa: S608 - constants
    row = conn.exec_driver_sql(sql(conn, text), (replica_id,)).first()
    return None if row is None else _record(tuple(row))


def mark_lost(conn: Connection, replica: ReplicaRecord) -> bool:
    """LOST, unless it has given a sign of life since `replica` was read."""
    text = "UPDATE replicas SET state = ? WHERE replica_id = ? AND heartbeat_at_ms = ? AND state = ?"
    fields = (ReplicaState.LOST.value, replica.replica_id, replica.heartbeat_at_ms, replica.state.value)
    return conn.exec_driver_sql(sql(conn, text), fields).rowcount == 1


def request_drain(conn: Connection, replica_id: str, request: DrainRequest) -> None:
    """Leave the wish where its replica finds it."""
    text = "UPDATE replicas SET drain_requested_at_ms = ?, drain_deadline_ms = ?, drain_reason = ? WHERE replica_id = ?"
    fields = (request.requested_at_ms, request.deadline_ms, int(request.reason), replica_id)
    conn.exec_driver_sql(sql(conn, text), fields)


def forget_ended(conn: Connection, before_ms: int) -> int:
    """Delete processes that ended before a time, so that names given at random do not pile up."""
    text = "DELETE FROM replicas WHERE state IN (?, ?) AND heartbeat_at_ms < ?"
    fields = (ReplicaState.STOPPED.value, ReplicaState.LOST.value, before_ms)
    return conn.exec_driver_sql(sql(conn, text), fields).rowcount


def _record(row: tuple[Any, ...]) -> ReplicaRecord:
    drain = (
        DrainRequest(row[7], row[8], _REASONS.get(row[9], gateway_pb2.GOAWAY_REASON_UNSPECIFIED)) if row[7] else None
    )
    endpoints = tuple(filter(None, row[14].split(",")))
    fields: tuple[Any, ...] = (*row[:2], ReplicaState(row[2]), *row[3:7], drain, *row[10:14], endpoints)
    return ReplicaRecord(*fields)


_REASONS = {int(number): number for number in gateway_pb2.GoawayReason.values()}
