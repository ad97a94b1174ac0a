"""What nodes told of routes and was not recorded yet: checked for form, latest wins, bounded for each node and in all.

A healthy way is told again and again, and only the newest of it matters. What changed in between is kept, a few steps
of it, for a way that came and went is charged for that. Past the bounds healthy observations are dropped, for they come
again; then all others. Belongs to the event loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from fleet.v1 import route_pb2
from fleet_server.routes.record import Key, ObservationRecord

MAX_OBSERVATIONS = 512
"""Read of one frame."""
MAX_OF_NODE = 2_048
"""Waiting from one node; a source of 400 routes tells of 2,000 ways."""
MAX_IN_ALL = 50_000
MAX_STEPS = 8
"""Changes of one way that are kept between two writes."""
URGENT_EACH_S = 5.0
MAX_URGENT = 8
"""So often in `URGENT_EACH_S` a node has what it tells recorded at once; after that it waits like all others."""
MAX_HOPS = 5

_TYPES = frozenset(route_pb2.ObservationType.values()) - {route_pb2.OBSERVATION_TYPE_UNSPECIFIED}
_STATES = frozenset(route_pb2.RouteState.values()) - {route_pb2.ROUTE_STATE_UNSPECIFIED}
_BAD = frozenset({route_pb2.ROUTE_STATE_DRIFT, route_pb2.ROUTE_STATE_UNREACHABLE})
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_WORD = re.compile(r"[A-Z0-9_]{0,64}\Z")
_LARGEST = 2**53


class Told(NamedTuple):
    """One observation as it is stored, as it was sent, and the epoch of the stream that it came on."""

    epoch: int
    what: ObservationRecord
    sent: route_pb2.RouteObservation

    @property
    def key(self) -> Key:
        """What it is about: of these the newest counts."""
        return self.what.key


class Intake:
    """Waiting observations by node.

    Args:
        dropped: told why, and how many.
        may_wait_s: how many seconds something that is not urgent may wait for others.
        monotonic: seconds.
    """

    def __init__(
        self,
        dropped: Callable[[str, int], None],
        may_wait_s: Callable[[ObservationRecord], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._dropped = dropped
        self._may_wait_s = may_wait_s
        self._monotonic = monotonic
        self._waiting: dict[str, dict[Key, list[Told]]] = {}
        self._urgent: dict[str, tuple[float, int]] = {}
        self.count = 0

    def add(self, node_id: str, epoch: int, health: route_pb2.RouteHealth, now_ms: int) -> float | None:
        """Take what a node tells; how many seconds it may wait to be recorded, None when none of it is to be."""
        over = len(health.observations) - MAX_OBSERVATIONS
        if over > 0:
            self._dropped("too_many", over)
        taken: list[ObservationRecord] = []
        malformed = 0
        for observation in health.observations[:MAX_OBSERVATIONS]:
            record = read(observation, node_id, now_ms)
            if record is None:
                malformed += 1
            elif self._put(Told(epoch, record, observation)):
                taken.append(record)
        if malformed:
            self._dropped("malformed", malformed)
        if any(map(_is_urgent, taken)) and self._may_hurry(node_id):
            return 0.0
        return min(map(self._may_wait_s, taken), default=None)

    def take(self, max_routes: int) -> list[Told]:
        """What is recorded next: all that waits about so many routes, in the order in which each node told it."""
        taken: list[Told] = []
        routes: set[str] = set()
        for node_id in list(self._waiting):
            waiting = self._waiting[node_id]
            for key in list(waiting):
                if key[0] in routes or len(routes) < max_routes:
                    routes.add(key[0])
                    taken += waiting.pop(key)
            if not waiting:
                del self._waiting[node_id]
            elif len(routes) >= max_routes:
                break
        self.count -= len(taken)
        return taken

    def give_back(self, batch: Sequence[Told], not_before_ms: int, why: str) -> None:
        """What could not be recorded, and why; what came since is newer. What was told before a time is dropped."""
        newer = [told for waiting in self._waiting.values() for steps in waiting.values() for told in steps]
        self._waiting, self.count = {}, 0
        kept = [told for told in batch if told.what.received_at_ms >= not_before_ms]
        if len(kept) < len(batch):
            self._dropped(why, len(batch) - len(kept))
        for told in (*kept, *newer):
            self._put(told)

    def _put(self, told: Told) -> bool:
        record = told.what
        waiting = self._waiting.setdefault(record.reporter_id, {})
        key = told.key
        steps = waiting.get(key)
        if steps is not None:
            if steps[-1].what.state == record.state:
                steps[-1] = told
                return True
            if len(steps) >= MAX_STEPS:
                steps.pop(0)
                self.count -= 1
                self._dropped("coalesced", 1)
        elif len(waiting) >= MAX_OF_NODE or (self.count >= MAX_IN_ALL and not self._make_room(record)):
            if not waiting:
                del self._waiting[record.reporter_id]
            self._dropped("full", 1)
            return False
        waiting.setdefault(key, []).append(told)
        self.count += 1
        return True

    def _make_room(self, record: ObservationRecord) -> bool:
        """Drop something healthy for what is not."""
        if not _is_urgent(record):
            return False
        for waiting in self._waiting.values():
            for key, steps in waiting.items():
                if not any(_is_urgent(told.what) for told in steps):
                    del waiting[key]
                    self.count -= len(steps)
                    self._dropped("full", len(steps))
                    return True
        return False

    def _may_hurry(self, node_id: str) -> bool:
        now_s = self._monotonic()
        since_s, count = self._urgent.get(node_id, (now_s, 0))
        if now_s - since_s >= URGENT_EACH_S:
            since_s, count = now_s, 0
        if len(self._urgent) >= MAX_IN_ALL:
            self._urgent.clear()
        self._urgent[node_id] = since_s, count + 1
        return count < MAX_URGENT


def read(observation: route_pb2.RouteObservation, reporter_id: str, now_ms: int) -> ObservationRecord | None:
    """What a node sent, cut to what a row can hold; None when it is malformed. Nothing of it is believed yet."""
    expected, observed = tuple(observation.expected_hops), tuple(observation.observed_hops)
    if not (
        observation.observation_type in _TYPES
        and observation.state in _STATES
        and 2 <= len(expected) <= MAX_HOPS
        and len(observed) <= MAX_HOPS
        and _ID.match(observation.route_id)
        and _are_ids(expected)
        and _are_ids(observed)
        and (not observation.blamed_node_id or _ID.match(observation.blamed_node_id))
        and _WORD.match(observation.failure)
        and observation.generation <= _LARGEST
    ):
        return None
    subject = _subject(observation.observation_type, expected)
    if subject is None:
        return None
    return ObservationRecord(
        route_id=observation.route_id,
        observation_type=observation.observation_type,
        subject=subject,
        reporter_id=reporter_id,
        generation=observation.generation,
        state=observation.state,
        expected_hops=expected,
        observed_hops=observed,
        rtt_us=observation.rtt_us,
        loss_permille=min(observation.loss_permille, 1000),
        observed_at_ms=max(0, min(observation.observed_at_ms, _LARGEST)),
        received_at_ms=now_ms,
        blamed_id=observation.blamed_node_id,
        failure=observation.failure,
        failed_hop=min(observation.failed_hop, MAX_HOPS),
    )


@lru_cache(maxsize=16_384)
def _are_ids(path: tuple[str, ...]) -> bool:
    """The same paths are told again and again."""
    return all(map(_ID.match, path))


def _subject(kind: int, expected: Sequence[str]) -> str | None:
    """Relay of the way that was walked; for others the node that it is about. None for a way of more than one relay."""
    if kind == route_pb2.OBSERVATION_TYPE_PEER_CONNECTION:
        return expected[1]
    return "" if len(expected) == 2 else expected[1] if len(expected) == 3 else None


def _is_urgent(record: ObservationRecord) -> bool:
    return record.state in _BAD
