"""Which owner this node pins: what the join token said, unless a person at the node said otherwise."""

from __future__ import annotations

from pathlib import Path

from fleet.identity import write_private
from fleet.people import parse_pin
from fleet_node.enrollment.membership import Membership, MembershipError, read_state


def pinned_owner(path: Path, membership: Membership) -> bytes:
    """SHA-256 of the owner's public key; empty when none is pinned.

    Args:
        path: what `pin_owner` wrote, if it did.
        membership: holds what the join token said.

    Raises:
        MembershipError: the file is damaged: to go on with the token's pin would undo what a person decided.
    """
    if not path.exists():
        return membership.owner_pin
    try:
        return parse_pin(read_state(path).decode("ascii"))
    except ValueError as error:
        raise MembershipError(f"{path} holds no owner pin ({error}): move it away, and pin the owner again") from error


def pin_owner(path: Path, pin: bytes) -> None:
    """Pin an owner from now on, durably, 0600.

    Raises:
        OSError: it cannot be written; what was pinned before stands.
    """
    write_private(path, pin.hex().encode() + b"\n")
