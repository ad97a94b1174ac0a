"""What the node knows of the people who may decide about protected actions, as `status`, `doctor` and `owner` show
it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fleet.people import People
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import Membership
from fleet_node.enrollment.owner_pin import pinned_owner
from fleet_node.link.people_store import load_people


def known_people(folder: StateFolder, membership: Membership) -> People:
    """What the state folder holds.

    Raises:
        MembershipError: a file is damaged.
    """
    pin = pinned_owner(folder.owner_pin, membership)
    return load_people(folder.people, cluster_id=membership.cluster_id, pin=pin)[0]


def people_status(people: People) -> Mapping[str, Any]:
    """All of it, as JSON takes it; times in Unix milliseconds."""
    owner, policy = people.owner, people.policy_in_force
    return {
        "pin": people.pin.hex(),
        "generation": 0 if owner is None else owner.generation,
        "key": "" if owner is None else owner.public_key.hex(),
        "policy_version": 0 if policy is None else policy.version,
        "policy_expires_at_ms": 0 if policy is None else policy.not_after_ms,
        "roles": [
            {"name": grant.name, "role": grant.role.value, "expires_at_ms": grant.not_after_ms}
            for grant in people.grants.values()
        ],
    }


def missing(said: Mapping[str, Any], now_ms: int) -> tuple[str, str]:
    """What keeps protected actions from running here, and what to do about it; empty when nothing does.

    Args:
        said: what `people_status` returns.
        now_ms: Unix milliseconds.
    """
    if not said["pin"]:
        return (
            "none pinned: protected actions are refused",
            "ask the owner for the pin, then run `fleet-node owner pin HEX`",
        )
    if not said["generation"]:
        return (
            f"pinned {said['pin']}; the owner has signed nothing that reached this node: protected actions are refused",
            "`fleetctl owner init`; it comes with the next trust bundle. If the pin is another owner's: --replace it",
        )
    if not said["policy_version"]:
        return "no policy of this owner: protected actions are refused", "the owner runs `fleetctl policy set`"
    if now_ms >= said["policy_expires_at_ms"]:
        ended = f"policy {said['policy_version']} expired {_date(said['policy_expires_at_ms'])}"
        return f"{ended}: protected actions are refused", "the owner runs `fleetctl policy sign`"
    return "", ""


def sentence(said: Mapping[str, Any], now_ms: int) -> str:
    """One line for people; as for `missing`."""
    gap, _ = missing(said, now_ms)
    if gap:
        return gap
    people = {one["name"] for one in said["roles"] if now_ms < one["expires_at_ms"]}
    return (
        f"generation {said['generation']}, policy {said['policy_version']} until {_date(said['policy_expires_at_ms'])},"
        f" {len(people)} {'person' if len(people) == 1 else 'people'} with roles"
    )


def protected_sentence(said: Mapping[str, Any]) -> str:
    """Which actions need people's intent, as the daemon says under `protected`."""
    return ", ".join(said["actions"]) or "no action: every operator's command runs without people's intent"


def _date(at_ms: int) -> str:
    return datetime.fromtimestamp(min(at_ms, _LAST_MS) / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


_LAST_MS = 253_402_300_799_000  # the year 9999: a person may sign any number
