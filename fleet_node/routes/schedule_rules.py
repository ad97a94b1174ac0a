"""When the source of a route walks which of its ways, and when it has something to report: pure.

One object a route. The caller asks `next_ms`, starts what `due` returns, and gives every result to `finished`; a report
that comes back goes out as one frame. The paces:

- the path in force once an interval, every other way once a candidate interval, both with jitter: many routes that
  began at one moment must not walk at one moment for ever;
- after a failed walk of the path in force it is walked again at once, and every other way with it (burst), so that the
  server decides with fresh knowledge of all of them. The report waits until all of that has come back: at most two
  deadlines;
- as long as the path in force is bad, the other ways are walked at its pace and together with it: the first that comes
  back is the way out, and a report need not wait for walks that began in between;
- a walk that said nothing is repeated soon;
- that another way works as it did is said twice, and then of every other walk.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet_node.routes.health_rules import Finding, ObservationType, PathHealth, RouteState
from fleet_node.routes.rules import DIRECT, Chance, EffectivePath, Policy
from fleet_node.routes.walk_rules import WalkResult, WalkState

JITTER = 0.1
MAX_DEADLINE_MS = 3_000
MAX_WAIT_DEADLINES = 2
"""What has been found waits no longer for walks that are still out."""
NEVER_MS = 2**62
ALWAYS_SAID = 2
"""So often in a row a candidate is said to be as it was; the server asks for as many before it believes in it."""
NEWS_SHARE = 4
"""A round trip that is by such a part longer or shorter than the one that was said is news."""
LEASE_EXPIRED = "LEASE_EXPIRED"

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk to start now; it has to end within `timeout_ms`."""

    route_id: str
    generation: int
    path: Path
    timeout_ms: int
    started_ms: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one route has to say.

    Args:
        ask: the path in force does not do: ask for another one, if feedback_rules lets it.
        healed: the path in force was bad and is not any more.
    """

    route_id: str
    relay_id: str
    findings: tuple[Finding, ...]
    ask: bool
    healed: bool


def walk_timeout_ms(interval_ms: int) -> int:
    """How long a walk may take: three of them fit into an interval, so that a failure is confirmed within it."""
    return max(1, min(interval_ms // 3, MAX_DEADLINE_MS))


@dataclass(slots=True)
class _Said:
    """What was said of a candidate last.

    Args:
        times: that it was walked and found so, one after another.
        held_back: the last of them was not said.
    """

    state: RouteState
    loss_permille: int
    rtt_us: int
    times: int = 1
    held_back: bool = False

    def alike(self, state: RouteState, loss_permille: int, rtt_us: int) -> bool:
        """Whether this is no news."""
        close = abs(rtt_us - self.rtt_us) <= self.rtt_us // NEWS_SHARE
        return close and (state, loss_permille) == (self.state, self.loss_permille)


class RouteWalks:
    """Paces of one route whose source this node is. Times are milliseconds of one clock that never goes back."""

    def __init__(self, route: EffectivePath, policy: Policy, now_ms: int, chance: Chance) -> None:
        self.route = route
        self._policy = policy
        self._chance = chance
        self._health: dict[Path, PathHealth] = {}
        self._due_ms: dict[Path, int] = {}
        self._walking: set[Path] = set()
        self._news: set[Path] = set()
        self._reported = RouteState.UNSPECIFIED
        self._to_report = False
        self._waiting_since_ms: int | None = None
        self._lease_lost = False
        self._connection_said: tuple[Path, RouteState, int] | None = None
        self._candidates_said: dict[Path, _Said] = {}
        for path in (route.path, *route.candidates):
            self._begin(path, now_ms, within_ms=route.probe_interval_ms // 2)

    @property
    def health(self) -> PathHealth:
        """Of the path in force."""
        return self._health[self.route.path]

    @property
    def lease_lost(self) -> bool:
        """Whether the path in force may not be walked, because no lease covers it."""
        return self._lease_lost

    @property
    def next_ms(self) -> int:
        """When the next walk is due; NEVER_MS while all are on their way."""
        return min((at for path, at in self._due_ms.items() if self._may_start(path)), default=NEVER_MS)

    def due(self, now_ms: int) -> tuple[Walk, ...]:
        """Walks to start now; each has to come back by `finished`."""
        latest_ms = now_ms
        if self._bad() and self.next_ms <= now_ms:
            latest_ms += self.route.probe_interval_ms // 2
        ready = [path for path, at in self._due_ms.items() if at <= latest_ms and self._may_start(path)]
        self._walking.update(ready)
        timeout_ms = walk_timeout_ms(self.route.probe_interval_ms)
        return tuple(Walk(self.route.route_id, self.route.generation, path, timeout_ms, now_ms) for path in ready)

    def finished(self, walk: Walk, result: WalkResult, now_ms: int) -> Report | None:
        """Takes in what a walk showed; the report if one is complete by it.

        The result of a walk along a way that is not one of this route any more is dropped.
        """
        self._walking.discard(walk.path)
        health = self._health.get(walk.path)
        if health is None:
            return self._report_if_complete(now_ms)
        interval_ms = self._interval_ms(walk.path)
        if health.note(result, now_ms, interval_ms, self._policy):
            self._news.add(walk.path)
        effective = walk.path == self.route.path
        if result.state is WalkState.INCONCLUSIVE:
            self._due_ms[walk.path] = now_ms + self._jittered(self.route.probe_interval_ms) // 4
        elif health.suspect:
            self._due_ms[walk.path] = now_ms
        else:
            self._due_ms[walk.path] = max(now_ms, walk.started_ms + self._jittered(self._interval_ms(walk.path)))
        if effective and walk.path in self._news:
            self._to_report = True
            if health.suspect or health.state.bad:
                self._burst(now_ms, only_overdue=not health.suspect)
        return self._report_if_complete(now_ms)

    def replace(self, route: EffectivePath, now_ms: int) -> None:
        """Another snapshot: ways that stay keep what is known of them, another path in force is walked very soon."""
        switched = route.path != self.route.path
        anxious = self._bad()
        quicker = route.probe_interval_ms < self.route.probe_interval_ms
        quicker |= route.candidate_interval_ms < self.route.candidate_interval_ms
        self.route = route
        wanted = {route.path, *route.candidates}
        for path in self._health.keys() - wanted:
            del self._health[path], self._due_ms[path]
            self._news.discard(path)
        for path in (route.path, *route.candidates):
            if path not in self._health:
                self._begin(path, now_ms, within_ms=0 if anxious else route.probe_interval_ms // 2)
            else:
                self._health[path].new_generation()
                if quicker:
                    self._due_ms[path] = min(self._due_ms[path], now_ms + self._interval_ms(path))
        self.say_again()
        if switched:
            self._lease_lost = False
            self._reported = RouteState.UNSPECIFIED
            self._due_ms[route.path] = now_ms + round(self._chance() * route.probe_interval_ms * JITTER)

    def say_again(self) -> None:
        """Nobody may know what was said: the next of each way is said, however it is."""
        self._candidates_said.clear()

    def lease_changed(self, covered: bool, now_ms: int) -> Report | None:
        """Whether a lease covers the path in force; the report at the moment when none does any more.

        Without one the path is withdrawn: not walked until a lease or another path comes. The other ways need none.
        """
        if covered or self._lease_lost or self.route.relay_id == DIRECT:
            if covered and self._lease_lost:
                self._lease_lost = False
                self._due_ms[self.route.path] = now_ms
            return None
        self._lease_lost = True
        self._burst(now_ms, only_overdue=False)
        return Report(self.route.route_id, self.route.relay_id, (self._lease_finding(now_ms),), ask=True, healed=False)

    def _lease_finding(self, now_ms: int) -> Finding:
        return Finding(
            self.route.route_id,
            self.route.generation,
            ObservationType.LEASE,
            RouteState.UNREACHABLE,
            self.route.path,
            at_ms=now_ms,
            failure=LEASE_EXPIRED,
            failed_hop=1,
        )

    def _begin(self, path: Path, now_ms: int, *, within_ms: int) -> None:
        self._health[path] = PathHealth(path, now_ms)
        self._due_ms[path] = now_ms + round(self._chance() * within_ms)

    def _may_start(self, path: Path) -> bool:
        return path not in self._walking and not (self._lease_lost and path == self.route.path)

    def _bad(self) -> bool:
        return self._lease_lost or self.health.state.bad

    def _interval_ms(self, path: Path) -> int:
        if path == self.route.path or self._bad():
            return self.route.probe_interval_ms
        return self.route.candidate_interval_ms

    def _jittered(self, interval_ms: int) -> int:
        return round(interval_ms * (1 + JITTER * (2 * self._chance() - 1)))

    def _burst(self, now_ms: int, *, only_overdue: bool) -> None:
        """Every other way at once; `only_overdue`: those whose turn would come later than the pace of a bad route."""
        latest_ms = now_ms + self.route.probe_interval_ms if only_overdue else now_ms
        for path in self.route.candidates:
            self._due_ms[path] = min(self._due_ms[path], latest_ms)

    def _report_if_complete(self, now_ms: int) -> Report | None:
        """The report, once nothing of a burst is out any more and no suspicion is left to confirm."""
        if self._lease_lost and self.health.suspect:
            self._news.discard(self.route.path)  # without a lease no walk will confirm it
        elif self.health.suspect:
            return None
        if not self._news or not (self._to_report or self._lease_lost):
            return None
        suspects = {path for path in self._news if self._health[path].suspect}
        if self._waiting_since_ms is None:
            self._waiting_since_ms = now_ms
        waited_ms = now_ms - self._waiting_since_ms
        if self._walking or suspects or self._pending(now_ms):
            if waited_ms < MAX_WAIT_DEADLINES * walk_timeout_ms(self.route.probe_interval_ms) or self._news <= suspects:
                return None
            self._news -= suspects
        state, before = self.health.state, self._reported
        route_id, generation = self.route.route_id, self.route.generation
        findings = [
            self._health[path].finding(route_id, generation, ObservationType.CANDIDATE_PATH)
            for path in self.route.candidates
            if path in self._news and (self._is_worth_saying(path) or state is not before or state.bad)
        ]
        if self.route.path in self._news:
            self._reported = state
            findings[:0] = [
                self.health.finding(route_id, generation, ObservationType.SYNTHETIC_ROUTE_HEALTH),
                *self._connection(now_ms),
            ]
        if self._lease_lost:
            findings.insert(0, self._lease_finding(now_ms))
        self._news = suspects
        self._to_report, self._waiting_since_ms = False, None
        return Report(
            route_id,
            self.route.relay_id,
            tuple(findings),
            ask=self._lease_lost or state.bad,
            healed=before.bad and not state.bad and not self._lease_lost,
        )

    def _pending(self, now_ms: int) -> bool:
        """Whether walks of the burst have still to start."""
        return self._bad() and any(at <= now_ms and self._may_start(path) for path, at in self._due_ms.items())

    def _is_worth_saying(self, path: Path) -> bool:
        """Of a candidate that is as it was every other walk: the server does without two of them, and wants to hear of
        two after each decision."""
        health, said = self._health[path], self._candidates_said.get(path)
        rtt_us = health.last.rtt_us if health.last is not None else 0
        as_it_was = said is not None and said.alike(health.state, health.loss_permille, rtt_us)
        if said is None or not as_it_was or health.state.bad:
            self._candidates_said[path] = _Said(health.state, health.loss_permille, rtt_us)
            return True
        said.held_back = said.times >= ALWAYS_SAID and not said.held_back
        said.times += 1
        return not said.held_back

    def _connection(self, now_ms: int) -> tuple[Finding, ...]:
        """The first hop, as the last walk of the path in force met it; nothing when that was said not long ago."""
        last, health, hop = self.health.last, self.health, self.route.path[:2]
        answers = last is not None and last.first_hop_us > 0
        state = RouteState.HEALTHY if answers else RouteState.UNREACHABLE
        if self._connection_said is not None:
            before, was, at_ms = self._connection_said
            if (before, was) == (hop, state) and now_ms - at_ms < self.route.candidate_interval_ms:
                return ()
        self._connection_said = hop, state, now_ms
        found = Finding(
            self.route.route_id,
            self.route.generation,
            ObservationType.PEER_CONNECTION,
            state,
            hop,
            observed=hop if answers else hop[:1],
            rtt_us=last.first_hop_us if last is not None else 0,
            at_ms=health.at_ms,
            failure="" if answers or last is None else last.failure,
            failed_hop=0 if answers else 1,
        )
        return (found,)
