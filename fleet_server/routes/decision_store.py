"""SQL over `route_decisions`: why a route has the path of a generation. Confers nothing; the audit has it as well."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from fleet_server.database.bulk import fetch_of
from fleet_server.database.engine import Connection
from fleet_server.database.statements import execute, execute_many, fetch
from fleet_server.routes.record import DecisionRecord

_COLUMNS = "route_id, generation, path, rule, reasons, scores, decided_at_ms, decided_by"
_SELECT = f"SELECT {_COLUMNS} FROM route_decisions"
_SAVE = (
    f"INSERT INTO route_decisions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (route_id, generation)"
    " DO UPDATE SET path = excluded.path, rule = excluded.rule, reasons = excluded.reasons, scores = excluded.scores,"
    " decided_at_ms = excluded.decided_at_ms, decided_by = excluded.decided_by"
)


def save(conn: Connection, decisions: Iterable[DecisionRecord]) -> None:
    """Store decisions; one of the same route and generation is put in the place of the one before."""
    rows = [
        (
            each.route_id,
            each.generation,
            json.dumps(each.path),
            each.rule,
            json.dumps(each.reasons),
            json.dumps(each.scores),
            each.decided_at_ms,
            each.decided_by,
        )
        for each in decisions
    ]
    if rows:
        execute_many(conn, _SAVE, rows)


def newest_of(conn: Connection, route_ids: Iterable[str]) -> dict[str, DecisionRecord]:
    """The newest decision of each route."""
    newest = "d.generation = (SELECT MAX(generation) FROM route_decisions n WHERE n.route_id = d.route_id)"
    select = f"SELECT {_COLUMNS} FROM ({_SELECT} d WHERE {newest}) AS newest"
    found = fetch_of(conn, select, "route_id", sorted(set(route_ids)))
    return {row[0]: _decision(row) for row in found}


def history_of(conn: Connection, route_id: str, *, before_generation: int, limit: int) -> list[DecisionRecord]:
    """Decisions about a route, newest first."""
    text = f"{_SELECT} WHERE route_id = ? AND generation < ? ORDER BY generation DESC LIMIT ?"
    return [_decision(row) for row in fetch(conn, text, (route_id, before_generation, limit))]


def delete_old(conn: Connection, before_ms: int, limit: int) -> int:
    """Delete decisions of before a time, but for the newest of each route; how many."""
    text = (
        "DELETE FROM route_decisions WHERE (route_id, generation) IN (SELECT d.route_id, d.generation FROM"
        " route_decisions d WHERE d.decided_at_ms < ? AND EXISTS (SELECT 1 FROM route_decisions n WHERE n.route_id ="
        " d.route_id AND n.generation > d.generation) ORDER BY d.decided_at_ms LIMIT ?)"
    )
    return execute(conn, text, (before_ms, limit))


def delete_route(conn: Connection, route_id: str) -> None:
    """Delete all decisions about a route."""
    execute(conn, "DELETE FROM route_decisions WHERE route_id = ?", (route_id,))


def _decision(row: Sequence[Any]) -> DecisionRecord:
    return DecisionRecord(
        row[0], row[1], tuple(_parsed(row[2])), row[3], _parsed(row[4]), _parsed(row[5]), row[6], row[7]
    )


def _parsed(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return found if isinstance(found, list) else []
