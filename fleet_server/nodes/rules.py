"""Decisions about nodes: which state may follow which, what a name and a label may be, how a name that is taken is
changed. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fleet.errors import Reason, Refusal
from fleet.identity import MAX_NODE_NAME_CHARS, NODE_NAME
from fleet_server.nodes.record import NodeRecord, NodeState
from fleet_server.nodes.selectors import SITE_KEY

MAX_LABELS = 64
MAX_REASON_CHARS = 500
MAX_SEQ = 2**62
_LABEL_KEY = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9._:/-]{0,63}")
_NEXT: Mapping[NodeState, frozenset[NodeState]] = {
    NodeState.ACTIVE: frozenset({NodeState.SUSPENDED, NodeState.REVOKED}),
    NodeState.SUSPENDED: frozenset({NodeState.ACTIVE, NodeState.REVOKED}),
    # A quarantined row was changed by somebody else: an operator may end it, not bless it.
    NodeState.QUARANTINED: frozenset({NodeState.REVOKED}),
    NodeState.REVOKED: frozenset(),
}
_REFUSED: Mapping[NodeState, tuple[Reason, str]] = {
    NodeState.SUSPENDED: (
        Reason.SUSPENDED,
        "an operator suspended this node: it may come back after `fleetctl nodes resume`",
    ),
    NodeState.REVOKED: (
        Reason.REVOKED,
        "this node was revoked for good: to return it needs new keys and a new join token",
    ),
    NodeState.QUARANTINED: (
        Reason.QUARANTINED,
        "this node is quarantined, for its record was changed outside the server: "
        "an operator has to revoke it and enroll it anew",
    ),
}
_CLONE_SUSPECTED = (
    Reason.QUARANTINED,
    "this node is quarantined, for two machines showed its keys, or one that went back in time: an operator has to say"
    " which machine is the node (`fleetctl nodes adopt`), or revoke it",
)


def refuse_inactive(node: NodeRecord) -> Refusal | None:
    """Why a node may not connect or be commanded; None when it may."""
    found = _REFUSED.get(node.state)
    if node.state is NodeState.QUARANTINED and node.intact:
        found = _CLONE_SUSPECTED
    if found is None:
        return None
    reason, sentence = found
    if node.state_reason:
        sentence = f"{sentence}. The reason given: {node.state_reason}"
    return Refusal(reason, sentence, metadata={"node": node.name})


def replaced_by_another(node: NodeRecord) -> str:
    """What a machine is told that was the node before."""
    why = f" The reason given: {node.state_reason}" if node.state_reason else ""
    return (
        "another machine has taken this one's place as the node (`fleetctl nodes replace`). To use this one again,"
        f" enroll it anew, with an empty state folder and a new join token.{why}"
    )


def settable_state(text: str) -> NodeState:
    """The state that an operator may ask for.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if text not in (NodeState.ACTIVE, NodeState.SUSPENDED, NodeState.REVOKED):
        raise _wrong(f"{text!r} is no state to set: choose ACTIVE, SUSPENDED or REVOKED")
    return NodeState(text)


def may_become(current: NodeState, wanted: NodeState) -> bool:
    """Whether an operator can take a node from one state to the other."""
    return wanted in _NEXT[current]


def may_be_adopted(node: NodeRecord, *, audit_broken: bool) -> bool:
    """Whether an operator may let a node start over: one that was set aside, or whose own audit does not go on; not one
    whose row somebody else wrote."""
    wanted = node.state is NodeState.QUARANTINED or (node.state is NodeState.ACTIVE and audit_broken)
    return wanted and node.intact


def refuse_transition(nodes: Sequence[NodeRecord], wanted: NodeState) -> Refusal:
    """The answer when none of `nodes` can get to `wanted`."""
    shown = ", ".join(f"{node.name} is {node.state}" for node in nodes[:5])
    more = f" and {len(nodes) - 5} more" if len(nodes) > 5 else ""
    return Refusal(
        Reason.CONFLICT,
        f"nothing was changed: {shown}{more}, and cannot become {wanted}. "
        "Revoked is final; a quarantined node is adopted (`fleetctl nodes adopt`) or revoked, and one whose record was "
        "changed outside the server can only be revoked, then enrolled anew with new keys",
    )


def refuse_adoption(nodes: Sequence[NodeRecord]) -> Refusal:
    """The answer when none of `nodes` can be adopted, as when it was already."""
    shown = ", ".join(f"{node.name} is {node.state}" for node in nodes[:5])
    more = f" and {len(nodes) - 5} more" if len(nodes) > 5 else ""
    return Refusal(
        Reason.CONFLICT,
        f"nothing was adopted: {shown}{more}. A node is adopted that was set aside (QUARANTINED), or whose own audit"
        " does not go on. `fleetctl nodes show` says whether one waits for its machine already; one whose record was"
        " changed outside the server can only be revoked, then enrolled anew with new keys",
    )


def checked_reason(text: str) -> str:
    """An operator's reason as it is stored and shown.

    Raises:
        Refusal: INVALID_ARGUMENT when it is too long or holds control characters.
    """
    if len(text) > MAX_REASON_CHARS or any(ord(char) < 32 for char in text):
        raise _wrong(f"the reason must be one line of at most {MAX_REASON_CHARS} characters")
    return text


def checked_name(text: str) -> str:
    """A node's name: 1 to 63 characters of [a-z0-9-] (fleet.v1.EnrollStatement).

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not NODE_NAME.fullmatch(text):
        raise _wrong(f"{text[:80]!r} is no node name: use 1 to {MAX_NODE_NAME_CHARS} characters of a-z, 0-9 and -")
    return text


def suffixed_name(name: str, suffix: str) -> str:
    """`name` with `suffix` behind it, cut so that it stays a name."""
    return f"{name[: MAX_NODE_NAME_CHARS - len(suffix) - 1]}-{suffix}"


def changed_labels(current: Mapping[str, str], put: Mapping[str, str], remove: Sequence[str]) -> dict[str, str]:
    """Operator labels after a change, sorted by key.

    Raises:
        Refusal: INVALID_ARGUMENT with the label that is wrong.
    """
    for key, value in put.items():
        _check_label(key, value)
    labels = {key: value for key, value in current.items() if key not in remove} | dict(put)
    if len(labels) > MAX_LABELS:
        raise _wrong(f"a node holds at most {MAX_LABELS} labels: remove some first")
    return dict(sorted(labels.items()))


def _check_label(key: str, value: str) -> None:
    # `reported.*` shows what a node says of itself: an operator's label of that name would lend it authority.
    if key in (SITE_KEY, "reported") or key.startswith("reported."):
        raise _wrong(f"label key {key!r} is reserved: the site comes from the join token, reported.* from the node")
    if not _LABEL_KEY.fullmatch(key):
        raise _wrong(f"{key[:80]!r} is no label key: use 1 to 63 characters of a-z, 0-9, '.', '_', '/' and '-'")
    if not _LABEL_VALUE.fullmatch(value):
        raise _wrong(f"the value of label {key!r} must be at most 63 characters of letters, digits and . _ : / -")


def _wrong(detail: str) -> Refusal:
    return Refusal(Reason.INVALID_ARGUMENT, detail)
