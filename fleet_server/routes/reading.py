"""What operators are shown of routes: pages, one of them, why it goes where it goes, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fleet.errors import Reason, Refusal
from fleet_server.database.engine import Connection
from fleet_server.routes import config_store, decision_store, finding_store, leasing, way_rules
from fleet_server.routes.model import Candidate, Decision, Policy, Relay
from fleet_server.routes.parts import RouteParts
from fleet_server.routes.record import ConfigRecord, DecisionRecord, LeaseRecord, ObservationRecord, RouteRecord
from fleet_server.routes.rules import decide

MAX_PAGE = 1_000
STATES = ("UNKNOWN", "HEALTHY", "DEGRADED", "DRIFT", "UNREACHABLE", "DISABLED")
_NEWEST = 2**62
_MOST_LEFT_OUT = 20


@dataclass(frozen=True, slots=True)
class RouteView:
    """One route with what belongs to it.

    Args:
        lease: its newest one, which may have ended; None when there never was one.
        configs: which version of their part its members run, by node; one without any is missing.
        latest: the latest observation of each type about each subject.
    """

    route: RouteRecord
    lease: LeaseRecord | None
    configs: Mapping[str, ConfigRecord]
    latest: Sequence[ObservationRecord]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a route goes where it goes.

    Args:
        decision: the one that is in force, as it was made; None when it was not kept.
        known: what is remembered of each way, by relay.
        pool: the relay pool as it is.
        live: what would be decided at this moment; its scores name relays that are out, too, the first of them.
        policy: the constants of that.
        now_ms: that moment, Unix milliseconds.
    """

    view: RouteView
    decision: DecisionRecord | None
    known: Mapping[str, Candidate]
    pool: Sequence[Relay]
    live: Decision
    policy: Policy
    now_ms: int


class RouteReading(RouteParts):
    """Operators' questions. Each raises a Refusal when the database is away."""

    async def page(
        self, *, after: str = "", limit: int = 100, node: str = "", relay: str = "", state: str = ""
    ) -> list[RouteRecord]:
        """A page of routes, by name.

        Args:
            after: name of the last route of the page before.
            limit: most routes.
            node: name or id of a node: only routes that it is an end or the relay of.
            relay: name or id of a node: only routes that lead over it.
            state: only routes in this state; DISABLED for those that are.

        Raises:
            Refusal: NOT_FOUND for a node; INVALID_ARGUMENT for the state.
        """
        if state and state not in STATES:
            raise Refusal(Reason.INVALID_ARGUMENT, f"{state[:80]!r} is no state of a route: choose {', '.join(STATES)}")
        node_id = (await self.nodes.get(node)).node_id if node else ""
        relay_id = (await self.nodes.get(relay)).node_id if relay else ""
        most = max(1, min(limit, MAX_PAGE))
        return await self.database.read(
            lambda conn: self.routes.page(
                conn, after=after, limit=most, node_id=node_id, relay_id=relay_id, state=state
            )
        )

    async def get(self, ref: str) -> RouteView:
        """A route by name or id.

        Raises:
            Refusal: NOT_FOUND.
        """
        return await self.database.read(lambda conn: self._view_of(conn, self.find(conn, ref)))

    async def explain(self, ref: str) -> Explanation:
        """Why a route goes where it goes: the decision in force, and what would be decided now.

        Raises:
            Refusal: NOT_FOUND.
        """

        def read(conn: Connection) -> Explanation:
            route, times = self.find(conn, ref), self.times()
            now_ms = times.now_ms
            view = self._view_of(conn, route)
            known = finding_store.candidates_of(conn, [route.route_id]).get(route.route_id, {})
            nodes = self.nodes.load_all(conn, [route.source_id, route.destination_id])
            pool = self.pool(conn)
            seen = self.as_decided(route, nodes, leasing.shown(view.lease, times))
            live = decide(seen, known, pool, now_ms, self.policy)
            others = way_rules.left_out({way.relay_id for way in live.scores}, pool, seen)
            live = replace(live, scores=(*live.scores, *others[:_MOST_LEFT_OUT]))
            decision = decision_store.newest_of(conn, [route.route_id]).get(route.route_id)
            return Explanation(view, decision, known, pool, live, self.policy, now_ms)

        return await self.database.read(read)

    async def history(self, ref: str, *, before: int = 0, limit: int = 100) -> list[tuple[int, ObservationRecord]]:
        """What was observed of a route, newest first, each with its position.

        Args:
            before: position of the last one of the page before; 0 for the first page.

        Raises:
            Refusal: NOT_FOUND.
        """
        most = max(1, min(limit, MAX_PAGE))
        return await self.database.read(
            lambda conn: finding_store.history_of(
                conn, self.find(conn, ref).route_id, before_position=before or _NEWEST, limit=most
            )
        )

    async def decisions(self, ref: str, *, before: int = 0, limit: int = 100) -> list[DecisionRecord]:
        """What was decided about a route, newest first.

        Args:
            before: generation of the last one of the page before; 0 for the first page.

        Raises:
            Refusal: NOT_FOUND.
        """
        most = max(1, min(limit, MAX_PAGE))
        return await self.database.read(
            lambda conn: decision_store.history_of(
                conn, self.find(conn, ref).route_id, before_generation=before or _NEWEST, limit=most
            )
        )

    def _view_of(self, conn: Connection, route: RouteRecord) -> RouteView:
        ids = [route.route_id]
        return RouteView(
            route=route,
            lease=self.leases.of_routes(conn, ids).get(route.route_id),
            configs=config_store.by_ids(conn, route.members),
            latest=finding_store.latest_of(conn, ids),
        )
