"""Which commands need people's signatures, and whether an intent is about the command that it comes with. Pure.

Whether the signatures suffice is the nodes' to say, with no trust in the server. What is refused here would be refused
there: the operator hears it at once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Iterable, Sequence

from google.protobuf.message import DecodeError

from fleet.errors import Reason, Refusal
from fleet.v1 import trust_pb2
from fleet_server.commands.rules import Spec
from fleet_server.nodes.record import DriverSet, NodeRecord

MAX_INTENT_BYTES = 32 * 1024  # some 400 nodes

PolicyCovers = Callable[[str], bool]
"""Whether the owner's policy asks for signatures before an action of that name runs."""


def refuse_unsigned(specs: Sequence[Spec], sets: Collection[DriverSet], covers: PolicyCovers) -> Refusal | None:
    """Refuse commands without an intent where the policy, or a node that is meant, wants one."""
    for name in {spec.action for spec in specs if spec.intent is None}:
        if covers(name) or any(action.protected for each in sets if (action := each.actions.get(name)) is not None):
            return Refusal(
                Reason.INTENT_REQUIRED,
                f"{name} is protected: it runs only with people's signed intent, so nothing was issued",
                metadata={"action": name},
            )
    return None


def refuse_unfit(
    specs: Sequence[Spec], targets: Sequence[NodeRecord], *, cluster_id: str, now_ms: int
) -> Refusal | None:
    """Refuse an intent that is about something else than the command that carries it."""
    for spec in specs:
        if spec.intent is not None:
            wrong = _wrong(spec, spec.intent, targets, cluster_id, now_ms)
            if wrong:
                return Refusal(Reason.INTENT_REFUSED, f"the intent does not fit the command: {wrong}; sign a new one")
    return None


def _wrong(spec: Spec, signed: trust_pb2.Signed, targets: Iterable[NodeRecord], cluster_id: str, now_ms: int) -> str:
    if signed.ByteSize() > MAX_INTENT_BYTES:
        return f"it has {signed.ByteSize()} bytes, and at most {MAX_INTENT_BYTES} are taken: name fewer nodes at once"
    try:
        intent = trust_pb2.IntentStatement.FromString(signed.statement)
    except DecodeError:
        return "it is no IntentStatement"
    if intent.cluster_id != cluster_id:
        return "it is for another cluster"
    if intent.action != spec.action:
        return f"it is for the action {intent.action!r}"
    if not hmac.compare_digest(intent.arguments_sha256, hashlib.sha256(spec.arguments).digest()):
        return "it is for other arguments"
    if now_ms > intent.not_after_ms:
        return "its time is over"
    named = {target.node_id: target for target in intent.targets}
    for node in targets:
        target = named.get(node.node_id)
        if target is None:
            return f"it does not name the node {node.name}"
        if target.name != node.name:
            return f"it names the node {node.name} as {target.name!r}"
        if not hmac.compare_digest(target.fingerprint, node.fingerprint):
            return f"it names another fingerprint for the node {node.name}"
    return ""
