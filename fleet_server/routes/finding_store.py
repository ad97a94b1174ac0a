"""SQL over `route_candidates`, `route_observations` and `route_observation_history`: what was found on the way. Confers
nothing."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from fleet_server.database.bulk import fetch_of, insert_many
from fleet_server.database.engine import Connection, for_update_of_free
from fleet_server.database.statements import execute, fetch
from fleet_server.routes.finding_rules import is_sane
from fleet_server.routes.model import Candidate, PathState
from fleet_server.routes.record import ObservationRecord

_CANDIDATE = (
    "route_id, relay_node_id, state, rtt_us, loss, samples, observed_at_ms, penalty, penalty_at_ms,"
    " suppressed_since_ms, stale_since_ms, failure, blamed_node_id"
)
_CANDIDATE_KEY = ("route_id", "relay_node_id")
_STATES = frozenset(PathState)
_NUMBERS = 8  # of a candidate, behind its state
_NUMERIC = {int, float}
_OBSERVATION = (
    "route_id, observation_type, subject, reporter_node_id, generation, state, expected_hops, observed_hops, rtt_us,"
    " loss_permille, observed_at_ms, received_at_ms, blamed_node_id, failure, failed_hop"
)
_OBSERVATION_KEY = ("route_id", "observation_type", "subject")


def _kinds(columns: str, **others: str) -> dict[str, str]:
    return {name: others.get(name, "bigint") for name in columns.split(", ")}


def _instead(columns: str, key: Sequence[str]) -> str:
    changed = ", ".join(f"{name} = excluded.{name}" for name in columns.split(", ") if name not in key)
    return f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changed}"


_CANDIDATE_KINDS = _kinds(
    _CANDIDATE,
    route_id="text",
    relay_node_id="text",
    state="text",
    rtt_us="double precision",
    loss="double precision",
    penalty="double precision",
    failure="text",
    blamed_node_id="text",
)
_OBSERVATION_KINDS = _kinds(
    _OBSERVATION,
    route_id="text",
    observation_type="integer",
    subject="text",
    reporter_node_id="text",
    state="integer",
    expected_hops="text",
    observed_hops="text",
    loss_permille="integer",
    blamed_node_id="text",
    failure="text",
    failed_hop="integer",
)
_INSTEAD_OF_CANDIDATE = _instead(_CANDIDATE, _CANDIDATE_KEY)
_INSTEAD_OF_OBSERVATION = _instead(_OBSERVATION, _OBSERVATION_KEY)


def candidates_of(conn: Connection, route_ids: Iterable[str]) -> dict[str, dict[str, Candidate]]:
    """What is remembered of each way, by route and relay; a route of which nothing is known is missing."""
    found: dict[str, dict[str, Candidate]] = {}
    for row in fetch_of(conn, f"SELECT {_CANDIDATE} FROM route_candidates", "route_id", sorted(set(route_ids))):
        found.setdefault(row[0], {})[row[1]] = _candidate(*row[1:])
    return found


def save_candidates(conn: Connection, known: Iterable[tuple[str, Candidate]]) -> None:
    """Store what is remembered of ways: (route id, candidate)."""
    rows: list[tuple[Any, ...]] = [
        (
            route_id,
            each.relay_id,
            str(each.state),
            each.rtt_us,
            each.loss,
            each.samples,
            each.observed_at_ms,
            each.penalty,
            each.penalty_at_ms,
            each.suppressed_since_ms,
            each.stale_since_ms,
            each.failure[:64],
            each.blamed[:64],
        )
        for route_id, each in sorted(known, key=lambda each: (each[0], each[1].relay_id))
    ]
    if rows:
        insert_many(conn, "route_candidates", _CANDIDATE_KINDS, rows, _INSTEAD_OF_CANDIDATE)


def save_latest(conn: Connection, observations: Iterable[ObservationRecord]) -> None:
    """Put observations in the place of those before, of the same route, type and subject; the last one counts."""
    newest = {(each.route_id, each.observation_type, each.subject): _row(each) for each in observations}
    if newest:
        rows = [row for _, row in sorted(newest.items())]
        insert_many(conn, "route_observations", _OBSERVATION_KINDS, rows, _INSTEAD_OF_OBSERVATION)


def add_history(conn: Connection, observations: Iterable[ObservationRecord]) -> None:
    """Keep observations."""
    rows = [_row(each) for each in observations]
    if rows:
        insert_many(conn, "route_observation_history", _OBSERVATION_KINDS, rows)


def latest_of(conn: Connection, route_ids: Iterable[str]) -> list[ObservationRecord]:
    """The latest of each type about each subject, by route."""
    rows = fetch_of(conn, f"SELECT {_OBSERVATION} FROM route_observations", "route_id", sorted(set(route_ids)))
    return sorted(map(_observation, rows), key=lambda each: (each.route_id, each.observation_type, each.subject))


def history_of(
    conn: Connection, route_id: str, *, before_position: int, limit: int
) -> list[tuple[int, ObservationRecord]]:
    """(position, observation) of a route, newest first."""
    text = (
        f"SELECT position, {_OBSERVATION} FROM route_observation_history WHERE route_id = ? AND position < ?"
        " ORDER BY position DESC LIMIT ?"
    )
    return [(row[0], _observation(row[1:])) for row in fetch(conn, text, (route_id, before_position, limit))]


def delete_old_history(conn: Connection, before_ms: int, limit: int) -> int:
    """Delete observations that came before a time, without those that another replica is at; how many."""
    text = (
        "DELETE FROM route_observation_history WHERE position IN (SELECT position FROM route_observation_history"
        f" WHERE received_at_ms < ? ORDER BY received_at_ms LIMIT ?{for_update_of_free(conn)})"
    )
    return execute(conn, text, (before_ms, limit))


def delete_route(conn: Connection, route_id: str) -> None:
    """Delete all that was found of a route."""
    for table in ("route_candidates", "route_observations", "route_observation_history"):
        execute(conn, f"DELETE FROM {table} WHERE route_id = ?", (route_id,))


def _candidate(relay_id: str, state: str, *rest: Any) -> Candidate:
    """What a row says; nothing when it makes no sense, or one that was planted would stop what reads it with others."""
    if state not in _STATES or not _NUMERIC.issuperset(map(type, rest[:_NUMBERS])):
        return Candidate(relay_id)
    known = Candidate(relay_id, PathState(state), *rest)
    return known if is_sane(known) else Candidate(relay_id)


def _row(each: ObservationRecord) -> tuple[Any, ...]:
    return (
        each.route_id,
        each.observation_type,
        each.subject,
        each.reporter_id,
        each.generation,
        each.state,
        _written(each.expected_hops),
        _written(each.observed_hops),
        each.rtt_us,
        each.loss_permille,
        each.observed_at_ms,
        each.received_at_ms,
        each.blamed_id,
        each.failure,
        each.failed_hop,
    )


def _observation(row: Sequence[Any]) -> ObservationRecord:
    fields: tuple[Any, ...] = (*row[:6], _hops(row[6]), _hops(row[7]), *row[8:])
    return ObservationRecord(*fields)


@lru_cache(maxsize=16_384)
def _written(hops: tuple[str, ...]) -> str:
    """The same paths are told again and again."""
    return json.dumps(hops)


def _hops(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except ValueError:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()
