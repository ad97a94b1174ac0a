"""What the walks of one path say about it: pure.

One failed walk is a suspicion, which the caller confirms at once with another one; only then the path is DRIFT or
UNREACHABLE. A walk that says nothing (INCONCLUSIVE: the peers do not have the same snapshot for a moment) is not
counted, unless nothing else comes for three intervals: a peer that does not know a route is as good as none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from fleet_node.routes.rules import Policy
from fleet_node.routes.walk_rules import WalkResult, WalkState

WINDOW = 10
INCONCLUSIVE_INTERVALS = 3


class RouteState(StrEnum):
    """Names of the wire's RouteState."""

    UNSPECIFIED = "UNSPECIFIED"  # nothing has been found out yet
    HEALTHY = "HEALTHY"
    DEGRADED = "DEGRADED"
    DRIFT = "DRIFT"
    UNREACHABLE = "UNREACHABLE"

    @property
    def bad(self) -> bool:
        """Whether the path does not do what it should."""
        return self in (RouteState.DRIFT, RouteState.UNREACHABLE)


class ObservationType(StrEnum):
    """Names of the wire's ObservationType."""

    SYNTHETIC_ROUTE_HEALTH = "SYNTHETIC_ROUTE_HEALTH"
    PEER_CONNECTION = "PEER_CONNECTION"
    LEASE = "LEASE"
    CANDIDATE_PATH = "CANDIDATE_PATH"


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation to report: RouteObservation without the parts that need a clock of the day.

    Args:
        observed: node ids that proved themselves.
        rtt_us: of the last walk; 0 if it was not answered.
        loss_permille: lost walks per thousand of the last ten.
        at_ms: when, on the clock of the caller.
    """

    route_id: str
    generation: int
    type: ObservationType
    state: RouteState
    path: tuple[str, ...]
    observed: tuple[str, ...] = ()
    rtt_us: int = 0
    loss_permille: int = 0
    at_ms: int = 0
    failure: str = ""
    failed_hop: int = 0
    blamed: str = ""


class PathHealth:
    """Window over the last ten walks of one path."""

    def __init__(self, path: tuple[str, ...], now_ms: int) -> None:
        self.path = path
        self.state = RouteState.UNSPECIFIED
        self.last: WalkResult | None = None
        self.at_ms = now_ms
        self._window: deque[int] = deque(maxlen=WINDOW)
        self._failed_in_a_row = 0
        self._silent_since_ms: int | None = None

    @property
    def suspect(self) -> bool:
        """Whether the last walk failed and the one before did not, so that one more has to say whether it is true."""
        return self._failed_in_a_row == 1

    @property
    def loss_permille(self) -> int:
        """Lost walks per thousand of those in the window."""
        return round(1000 * self._window.count(0) / len(self._window)) if self._window else 0

    @property
    def typical_rtt_us(self) -> int:
        """Median of the answered walks in the window; 0 if none was."""
        answered = sorted(rtt_us for rtt_us in self._window if rtt_us)
        return answered[len(answered) // 2] if answered else 0

    def note(self, result: WalkResult, now_ms: int, interval_ms: int, policy: Policy) -> bool:
        """Takes in a walk; returns whether it said anything.

        Args:
            now_ms: when it ended, on the caller's clock.
            interval_ms: between two walks of this path.
        """
        if result.state is WalkState.INCONCLUSIVE:
            if self._silent_since_ms is None:
                self._silent_since_ms = now_ms
            if now_ms - self._silent_since_ms < INCONCLUSIVE_INTERVALS * interval_ms:
                return False
            self._failed_in_a_row += 1  # three intervals have confirmed it
        else:
            self._silent_since_ms = None
        self.last, self.at_ms = result, now_ms
        answered = result.state is WalkState.ANSWERED
        if answered and self.state.bad:
            # An outage that is over is no loss: that is for the flap damping, and would keep the path down for minutes.
            while self._window and not self._window[-1]:
                self._window.pop()
        self._window.append(max(1, result.rtt_us) if answered else 0)
        self._failed_in_a_row = 0 if answered else self._failed_in_a_row + 1
        if answered:
            # Of a whole window, or one lost walk of the first few would already be a heavy loss.
            lossy = self._window.count(0) * 1000 > policy.degraded_loss_permille * WINDOW
            slow = self.typical_rtt_us > policy.degraded_rtt_us
            self.state = RouteState.DEGRADED if lossy or slow else RouteState.HEALTHY
        elif not self.suspect:
            self.state = RouteState.DRIFT if result.state is WalkState.DRIFT else RouteState.UNREACHABLE
        return True

    def new_generation(self) -> None:
        """The peers get another snapshot now: that they do not know it yet counts from here on."""
        self._silent_since_ms = None

    def finding(self, route_id: str, generation: int, type_: ObservationType) -> Finding:
        """The observation that reports this path as it stands."""
        last = self.last
        if last is None:
            return Finding(route_id, generation, type_, self.state, self.path, at_ms=self.at_ms)
        failed = self.state.bad
        return Finding(
            route_id,
            generation,
            type_,
            self.state,
            self.path,
            last.observed,
            last.rtt_us if last.state is WalkState.ANSWERED else 0,
            self.loss_permille,
            self.at_ms,
            last.failure if failed else "",
            last.failed_hop if failed else 0,
            last.blamed if failed else "",
        )
