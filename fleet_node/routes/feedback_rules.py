"""When a node asks for its snapshot on behalf of a route that does not do: pure.

Bounded three times: one ask is out per node, a route asks at most once per minimum interval, and an ask that changed
nothing for that route and relay holds the next one back for a time that doubles, capped and with jitter. It is cleared
when the route changes or heals. So a fleet behind a cut line does not ask the control plane in circles for what it has
already said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fleet_node.routes.rules import Chance, EffectivePath, Policy

SHORTEST = 0.75
"""Jitter takes up to a quarter off a cooldown, so that the cap stays one."""


class Outcome(StrEnum):
    """Names of the wire's RefreshOutcome."""

    REPLACED = "REPLACED"
    SAME_VERSION = "SAME_VERSION"
    NO_CHANGE = "NO_CHANGE"
    WITHDRAWN = "WITHDRAWN"
    TIMED_OUT = "TIMED_OUT"
    REFUSED = "REFUSED"


_CHANGED = (Outcome.REPLACED, Outcome.WITHDRAWN)


@dataclass(frozen=True, slots=True)
class Refresh:
    """What came of one ask for one route: RefreshReport."""

    route_id: str
    relay_id: str
    outcome: Outcome
    config_version: int
    elapsed_ms: int


@dataclass(frozen=True, slots=True)
class _Flight:
    routes: Mapping[str, EffectivePath]
    version: int
    asked_ms: int


@dataclass(slots=True)
class _Cooldown:
    length_ms: int
    until_ms: int


class Feedback:
    """Asks of one node. Times are milliseconds of one clock that never goes back."""

    def __init__(self, policy: Policy, chance: Chance) -> None:
        self.policy = policy
        self._chance = chance
        self._flight: _Flight | None = None
        self._asked_ms: dict[str, int] = {}
        self._cooldowns: dict[tuple[str, str], _Cooldown] = {}
        self._held_back = 0

    def ask(self, wanted: Iterable[EffectivePath], version: int, now_ms: int) -> tuple[str, ...]:
        """Route ids to ask for now, in one frame (refresh_routes); empty: all are held back, and counted.

        Args:
            wanted: routes that do not do, as they stand.
            version: of the snapshot in force.
        """
        routes = {route.route_id: route for route in wanted}
        allowed = {} if self._flight else {k: route for k, route in routes.items() if self._may_ask(route, now_ms)}
        self._held_back += len(routes) - len(allowed)
        if allowed:
            self._flight = _Flight(allowed, version, now_ms)
            self._asked_ms.update(dict.fromkeys(allowed, now_ms))
        return tuple(allowed)

    @property
    def timeout_ms(self) -> int | None:
        """When the ask that is out has failed; None if none is out."""
        return self._flight.asked_ms + self.policy.ask_timeout_ms if self._flight else None

    def answered(self, version: int, routes: Mapping[str, EffectivePath], now_ms: int) -> tuple[Refresh, ...]:
        """A snapshot was applied, asked for or not: what it means for the routes that were asked for.

        Args:
            version: of the snapshot; an older one than was in force never gets here.
            routes: what is in force now, by route id.
        """
        flight = self._flight

        def outcome(before: EffectivePath) -> Outcome:
            after = routes.get(before.route_id)
            if after is None:
                return Outcome.WITHDRAWN
            if after.path != before.path:
                return Outcome.REPLACED
            return Outcome.SAME_VERSION if flight and version <= flight.version else Outcome.NO_CHANGE

        return self._land(outcome, version, now_ms)

    def refused(self, version: int, now_ms: int) -> tuple[Refresh, ...]:
        """The answer was refused; it counts like one that changed nothing."""
        return self._land(lambda _: Outcome.REFUSED, version, now_ms)

    def expire(self, now_ms: int) -> tuple[Refresh, ...]:
        """Gives up an ask whose time is over. No cooldown: a server that did not answer has said nothing."""
        timeout_ms = self.timeout_ms
        return (
            self._land(lambda _: Outcome.TIMED_OUT, 0, now_ms)
            if timeout_ms is not None and now_ms >= timeout_ms
            else ()
        )

    def disconnected(self) -> None:
        """The stream is gone, and with it the answer to what is out."""
        self._flight = None

    def clear(self, route_id: str) -> None:
        """The route changed or healed."""
        for key in [key for key in self._cooldowns if key[0] == route_id]:
            del self._cooldowns[key]

    def keep(self, route_ids: Collection[str]) -> None:
        """Forgets routes that this node is not the source of any more."""
        for route_id in self._asked_ms.keys() - set(route_ids):
            del self._asked_ms[route_id]
            self.clear(route_id)

    def take_held_back(self) -> int:
        """Asks held back since the last call."""
        held_back, self._held_back = self._held_back, 0
        return held_back

    def _may_ask(self, route: EffectivePath, now_ms: int) -> bool:
        asked_ms = self._asked_ms.get(route.route_id)
        if asked_ms is not None and now_ms - asked_ms < self.policy.min_refresh_interval_ms:
            return False
        cooldown = self._cooldowns.get((route.route_id, route.relay_id))
        return cooldown is None or now_ms >= cooldown.until_ms

    def _land(self, outcome: Callable[[EffectivePath], Outcome], version: int, now_ms: int) -> tuple[Refresh, ...]:
        flight, self._flight = self._flight, None
        if flight is None:
            return ()
        refreshes = []
        for route in flight.routes.values():
            came = outcome(route)
            if came in _CHANGED:
                self.clear(route.route_id)
            elif came is not Outcome.TIMED_OUT:
                self._cool((route.route_id, route.relay_id), now_ms)
            refreshes.append(Refresh(route.route_id, route.relay_id, came, version, now_ms - flight.asked_ms))
        return tuple(refreshes)

    def _cool(self, key: tuple[str, str], now_ms: int) -> None:
        before = self._cooldowns.get(key)
        longest_ms = self.policy.no_change_cooldown_max_ms
        length_ms = min(before.length_ms * 2 if before else self.policy.no_change_cooldown_ms, longest_ms)
        shortened_ms = round(length_ms * (SHORTEST + (1 - SHORTEST) * self._chance()))
        self._cooldowns[key] = _Cooldown(length_ms, now_ms + shortened_ms)
