"""What a node found about its routes, while it waits to be recorded.

Bounded in number and in bytes, and together with what all streams hold. Nobody waits for room: findings about the same
way in the same state give way to the newest of them, and past a bound the oldest healthy ones go first, then the
oldest. So a database that is slow or away costs samples, never a stream, and never the news that a way has failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fleet.v1 import route_pb2
from fleet_server.streams.report_lane import HeldReports
from fleet_server.streams.route_rules import MAX_OBSERVATIONS, is_urgent

MAX_WAITING = 2 * MAX_OBSERVATIONS
MAX_WAITING_BYTES = 256 * 1024

_Key = tuple[str, int, int, tuple[str, ...]]
_Found = tuple[int, int, route_pb2.RouteObservation]  # number in the order of arrival, bytes, finding
_MAX_HELD_BACK = 2**31


class Taken(NamedTuple):
    """What is being recorded.

    Args:
        health: as the routes room takes it.
        numbers: of its findings, in the order in which they came.
    """

    health: route_pb2.RouteHealth
    numbers: tuple[int, ...]


class RouteBacklog:
    """Findings, asks and reports of earlier asks of one node.

    Args:
        held: bytes that all streams hold; see `HeldReports`.
    """

    __slots__ = ("_asks", "_bytes", "_held", "_held_back", "_number", "_quiet", "_refreshes", "_urgent")

    def __init__(self, held: HeldReports) -> None:
        self._held = held
        self._bytes = 0
        self._number = 0
        self._quiet: dict[_Key, _Found] = {}
        self._urgent: dict[_Key, _Found] = {}
        self._asks: dict[str, None] = {}
        self._refreshes: tuple[route_pb2.RefreshReport, ...] = ()
        self._held_back = 0

    def __len__(self) -> int:
        return len(self._quiet) + len(self._urgent)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to record."""
        return not (len(self) or self._asks or self._refreshes or self._held_back)

    @property
    def urgent(self) -> bool:
        """Whether something waits that calls for a decision now."""
        return bool(self._urgent or self._asks)

    def add(self, health: route_pb2.RouteHealth) -> int:
        """Put a checked frame behind what waits.

        Returns:
            How many findings were given up for lack of room.
        """
        for found in health.observations:
            self._number += 1
            self._put(found, self._number)
        self._say((*self._asks, *health.refresh_routes), (*self._refreshes, *health.refreshes))
        self._held_back = min(_MAX_HELD_BACK, self._held_back + health.refreshes_held_back)
        return self._make_room()

    def pass_by(self, health: route_pb2.RouteHealth) -> Taken:
        """A checked frame that need not wait, since nothing does: as `add` and `take`."""
        first = self._number + 1
        self._number += len(health.observations)
        return Taken(health, tuple(range(first, self._number + 1)))

    def take(self) -> Taken | None:
        """All that waits, in the order in which it came, or as much of it as a frame may hold; None when there is
        nothing."""
        if self.empty:
            return None
        taken = sorted((*self._quiet.values(), *self._urgent.values()), key=lambda one: one[0])[:MAX_OBSERVATIONS]
        for _, _, found in taken:
            self._drop(_key(found), self._side(found))
        health = route_pb2.RouteHealth(
            observations=[found for _, _, found in taken],
            refresh_routes=self._asks,
            refreshes=self._refreshes,
            refreshes_held_back=self._held_back,
        )
        self._asks, self._refreshes, self._held_back = {}, (), 0
        return Taken(health, tuple(number for number, _, _ in taken))

    def put_back(self, taken: Taken) -> int:
        """What `take` gave could not be recorded: it goes where it stood.

        Returns:
            How many findings were given up for lack of room.
        """
        health = taken.health
        for number, found in zip(taken.numbers, health.observations, strict=True):
            self._put(found, number)
        for side in (self._quiet, self._urgent):
            ordered = sorted(side.items(), key=lambda item: item[1][0])
            side.clear()
            side.update(ordered)
        self._say((*health.refresh_routes, *self._asks), (*health.refreshes, *self._refreshes))
        self._held_back = min(_MAX_HELD_BACK, self._held_back + health.refreshes_held_back)
        return self._make_room()

    def clear(self) -> None:
        """Nothing will be recorded any more."""
        self._held.remove(self._bytes, self._bytes)
        self._bytes = 0
        self._quiet, self._urgent, self._asks, self._refreshes, self._held_back = {}, {}, {}, (), 0

    def _say(self, asks: Iterable[str], refreshes: tuple[route_pb2.RefreshReport, ...]) -> None:
        self._asks = dict.fromkeys(list(dict.fromkeys(asks))[:MAX_OBSERVATIONS])
        self._refreshes = refreshes[-MAX_OBSERVATIONS:]

    def _put(self, found: route_pb2.RouteObservation, number: int) -> None:
        side, key = self._side(found), _key(found)
        if key in side:
            if side[key][0] > number:
                return
            self._drop(key, side)
        size = found.ByteSize()
        side[key] = number, size, found
        self._held.add(self._bytes, size)
        self._bytes += size

    def _side(self, found: route_pb2.RouteObservation) -> dict[_Key, _Found]:
        return self._urgent if is_urgent(found) else self._quiet

    def _drop(self, key: _Key, side: dict[_Key, _Found]) -> None:
        _, size, _ = side.pop(key)
        self._held.remove(self._bytes, size)
        self._bytes -= size

    def _make_room(self) -> int:
        given_up = 0
        while (
            len(self) > MAX_WAITING
            or self._bytes > MAX_WAITING_BYTES
            or (self._bytes and self._held.crowded(self._bytes))
        ):
            side = self._quiet or self._urgent
            self._drop(next(iter(side)), side)
            given_up += 1
        return given_up


def _key(found: route_pb2.RouteObservation) -> _Key:
    return found.route_id, found.observation_type, found.state, tuple(found.expected_hops)
