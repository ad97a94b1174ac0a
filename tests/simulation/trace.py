"""What a run is made of, as JSON lines: the mesh first, then what happens to it, then what was decided.

The first two say all there is about a run: noise is drawn from the seed and the moment, so that another policy meets
the same weather, and a replay the same decisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True, slots=True)
class SiteAt:
    """A site on a plane; distances are milliseconds of one way."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class NodeAt:
    node_id: str
    site: str


@dataclass(frozen=True, slots=True)
class RelayAt:
    node_id: str
    capacity: int
    weight: int = 100


@dataclass(frozen=True, slots=True)
class RouteFrom:
    route_id: str
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The mesh: `blocked` are pairs that never reach each other directly, as behind firewalls."""

    seed: int
    duration_ms: int
    interval_ms: int
    sites: tuple[SiteAt, ...]
    nodes: tuple[NodeAt, ...]
    relays: tuple[RelayAt, ...]
    routes: tuple[RouteFrom, ...]
    blocked: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something happens: `what` is link_down, link_up, node_down, node_up, split, join (of a set of sites, in `who`),
    slow or lossy (with a factor or a probability; 1 and 0 end it)."""

    at_ms: int
    what: str
    who: tuple[str, ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Decided:
    """A path that was decided."""

    at_ms: int
    route_id: str
    generation: int
    relay_id: str
    rule: str


@dataclass(frozen=True, slots=True)
class Trace:
    plan: Plan
    events: tuple[Event, ...]
    decisions: tuple[Decided, ...] = ()


def write(path: Path, trace: Trace) -> None:
    def lines() -> Iterable[dict[str, Any]]:
        yield {"trace": FORMAT, **asdict(trace.plan)}
        for event in trace.events:
            yield {"event": asdict(event)}
        for decided in trace.decisions:
            yield {"decided": asdict(decided)}

    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines()))


def read(path: Path) -> Trace:
    head, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    if head.pop("trace", None) != FORMAT:
        raise ValueError(
            f"{path.name} is no trace of format {FORMAT}: record it again, see tests/simulation/__main__.py"
        )
    plan = Plan(
        seed=head["seed"],
        duration_ms=head["duration_ms"],
        interval_ms=head["interval_ms"],
        sites=tuple(SiteAt(**row) for row in head["sites"]),
        nodes=tuple(NodeAt(**row) for row in head["nodes"]),
        relays=tuple(RelayAt(**row) for row in head["relays"]),
        routes=tuple(RouteFrom(**row) for row in head["routes"]),
        blocked=tuple((a, b) for a, b in head["blocked"]),
    )
    events = tuple(_event(row["event"]) for row in rows if "event" in row)
    return Trace(plan, events, tuple(Decided(**row["decided"]) for row in rows if "decided" in row))


def _event(row: dict[str, Any]) -> Event:
    who: Sequence[str] = row["who"]
    return Event(row["at_ms"], row["what"], tuple(who), row["value"])
