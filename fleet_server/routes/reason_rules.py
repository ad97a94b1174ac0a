"""What a decision says for itself, in words and numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fleet_server.routes.model import DIRECT, DecisionRule, Policy, Reason, Route
from fleet_server.routes.way_rules import Way


def explain(
    route: Route, relay_id: str, rule: DecisionRule, ways: Mapping[str, Way], policy: Policy
) -> tuple[Reason, ...]:
    """The rule in a sentence first, then what else had to do with it."""
    return (Reason(f"{rule}: {name(relay_id)}", {"rule": rule.value, "from": route.relay_id, "to": relay_id}),)


def name(relay_id: str) -> str:
    """A way, in words."""
    return "the direct path" if relay_id == DIRECT else f"the path over {relay_id}"
