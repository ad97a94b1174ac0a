"""What may become of a protected command that waits for signatures. Pure; time is an argument.

PENDING until enough people signed, then APPROVED for the moment that it takes to issue it, then ISSUED. REJECTED,
WITHDRAWN and EXPIRED are the other ends. Whether the signatures suffice is judged by the rules that the nodes use; the
nodes judge again, with no trust in this server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from fleet import envelope, intents
from fleet.errors import Reason, Refusal
from fleet.intents import IntentVerdict, Judgement, Order
from fleet.people import People, latest_ms
from fleet.v1 import admin_pb2, trust_pb2

MAX_PENDING = 1000
MAX_PENDING_EACH = 200
"""Of one operator: nobody keeps the others from proposing."""
MAX_REASON_CHARS = 500
MAX_SIGNED_BYTES = 32 * 1024
MAX_TTL_S = 30 * 24 * 3600
DEFAULT_TTL_S = 300
_WAITING = frozenset({IntentVerdict.NOT_ENOUGH_SIGNERS, IntentVerdict.GRANT_EXPIRED})


class ApprovalState(StrEnum):
    """Where it stands."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    ISSUED = "ISSUED"
    REJECTED = "REJECTED"
    WITHDRAWN = "WITHDRAWN"
    EXPIRED = "EXPIRED"
    QUARANTINED = "QUARANTINED"


@dataclass(frozen=True, slots=True)
class Approval:
    """One protected command. Times are Unix milliseconds.

    Args:
        approval_id: the intent's id in hexadecimal.
        intent: serialised Signed, with the signatures so far.
        ttl_s: from issue until the commands expire unstarted; never beyond the intent's own end.
        intact: False when the row was written around the server: then nothing in it is used.
    """

    approval_id: str
    cluster_id: str
    action: str
    arguments: bytes
    intent: bytes
    ttl_s: int
    created_by: str
    created_at_ms: int
    expires_at_ms: int
    state: ApprovalState
    issue_id: str = ""
    closed_by: str = ""
    reason: str = ""
    intact: bool = True

    @property
    def signed(self) -> trust_pb2.Signed:
        """The intent and its signatures."""
        return trust_pb2.Signed.FromString(self.intent)

    @property
    def statement(self) -> trust_pb2.IntentStatement:
        """What the intent says."""
        return intents.read_intent(self.signed)

    @property
    def spec(self) -> admin_pb2.CommandSpec:
        """The command that is issued once enough people signed."""
        return admin_pb2.CommandSpec(action=self.action, arguments=self.arguments, intent=self.signed)

    def shown_state(self, now_ms: int) -> ApprovalState:
        """Where it stands now: time ends what nobody ended."""
        if not self.intact:
            return ApprovalState.QUARANTINED
        waits = self.state in (ApprovalState.PENDING, ApprovalState.APPROVED)
        return ApprovalState.EXPIRED if waits and now_ms >= self.expires_at_ms else self.state


def propose(request: admin_pb2.ProposeCommandRequest, *, cluster_id: str, actor: str, now_ms: int) -> Approval:
    """A new one from an operator's request, its form checked.

    Raises:
        Refusal: INVALID_ARGUMENT, or INTENT_REFUSED for an intent that is about something else.
    """
    spec = request.command
    if not spec.HasField("intent"):
        raise Refusal(Reason.INVALID_ARGUMENT, "there is no intent to approve: `fleetctl run` makes and signs one")
    if request.ttl_s > MAX_TTL_S:
        raise Refusal(Reason.INVALID_ARGUMENT, f"a time to live has at most {MAX_TTL_S} s (30 days)")
    if spec.intent.ByteSize() > MAX_SIGNED_BYTES:
        raise _refused(f"the intent has more than {MAX_SIGNED_BYTES} bytes: name fewer nodes at once")
    try:
        intent = intents.read_intent(spec.intent)
    except ValueError as error:
        raise _refused(f"the signed bytes are no intent: {error}") from error
    arguments = spec.arguments or b"{}"
    if intent.cluster_id != cluster_id:
        raise _refused("the intent is for another cluster")
    if (intent.action, intent.arguments_sha256) != (spec.action, hashlib.sha256(arguments).digest()):
        raise _refused("the intent is for another action or other arguments")
    return Approval(
        approval_id=intent.intent_id.hex(),
        cluster_id=cluster_id,
        action=spec.action,
        arguments=arguments,
        intent=spec.intent.SerializeToString(),
        ttl_s=request.ttl_s or DEFAULT_TTL_S,
        created_by=actor,
        created_at_ms=now_ms,
        expires_at_ms=intent.not_after_ms,
        state=ApprovalState.PENDING,
    )


def judge(approval: Approval, people: People, now_ms: int) -> Judgement:
    """What a node that the intent names would say of it."""
    target = approval.statement.targets[0]
    order = Order(target.node_id, target.name, target.fingerprint, approval.action, approval.arguments)
    return intents.judge_intent(people, approval.signed, order, now_ms=latest_ms([now_ms], people.issued_at_ms()))


def with_known_signers(approval: Approval, people: People) -> Approval:
    """Without signatures by keys of nobody: they would take the places of those who have yet to sign."""
    signed = approval.signed
    known = [signature for signature in signed.signatures if signature.key_id in people.keys_by_id]
    kept = trust_pb2.Signed(statement=signed.statement, signatures=known)
    return replace(approval, intent=kept.SerializeToString())


def settle(approval: Approval, people: People, now_ms: int) -> Approval:
    """APPROVED once enough people signed, and then for good; PENDING while too few did.

    Raises:
        Refusal: INTENT_REFUSED: no further signature would make it good.
    """
    if approval.state is ApprovalState.APPROVED:
        return approval
    judgement = judge(approval, people, now_ms)
    if judgement.passes:
        left_s = max(1, (approval.expires_at_ms - now_ms) // 1000)
        return replace(approval, state=ApprovalState.APPROVED, ttl_s=min(approval.ttl_s, left_s))
    if judgement.verdict not in _WAITING:
        raise Refusal(Reason.INTENT_REFUSED, judgement.detail, metadata={"why": str(judgement.verdict)})
    return approval


def sign(approval: Approval, signatures: Sequence[trust_pb2.Signature], people: People, now_ms: int) -> Approval:
    """With further signatures over the very same bytes; the same ones again change nothing. One that is APPROVED stays
    as it is: what is issued under its idempotency key must be the same whoever issues it.

    Raises:
        Refusal: ALREADY_DECIDED, or INTENT_REFUSED for a signature that adds nobody.
    """
    if approval.shown_state(now_ms) is ApprovalState.APPROVED:
        return approval
    refuse_decided(approval, now_ms)
    signed = approval.signed
    for signature in signatures:
        if any(each.key_id == signature.key_id for each in signed.signatures):
            continue
        alone = trust_pb2.Signed(statement=signed.statement, signatures=[signature])
        judgement = intents.verified_intent(people, alone)
        if isinstance(judgement, Judgement):
            raise Refusal(Reason.INTENT_REFUSED, judgement.detail, metadata={"why": str(judgement.verdict)})
        if len(signed.signatures) >= envelope.MAX_SIGNATURES:
            raise _refused(f"it holds {envelope.MAX_SIGNATURES} signatures already")
        signed.signatures.append(signature)
    return replace(approval, intent=signed.SerializeToString())


def close(approval: Approval, *, actor: str, withdraw: bool, reason: str, now_ms: int) -> Approval:
    """Rejected, or withdrawn by who proposed it.

    Raises:
        Refusal: ALREADY_DECIDED, PERMISSION_DENIED for a stranger's withdrawal, INVALID_ARGUMENT.
    """
    refuse_decided(approval, now_ms)
    if withdraw and approval.created_by != actor:
        raise Refusal(
            Reason.PERMISSION_DENIED,
            f"{approval.created_by} proposed it, and withdraws it; you may `fleetctl approvals reject` it",
        )
    if len(reason) > MAX_REASON_CHARS:
        raise Refusal(Reason.INVALID_ARGUMENT, f"a reason has at most {MAX_REASON_CHARS} characters")
    state = ApprovalState.WITHDRAWN if withdraw else ApprovalState.REJECTED
    return replace(approval, state=state, closed_by=actor, reason=reason)


def refuse_decided(approval: Approval, now_ms: int) -> None:
    """Refuse to touch what has ended.

    Raises:
        Refusal: ALREADY_DECIDED, or QUARANTINED.
    """
    state = approval.shown_state(now_ms)
    if state is ApprovalState.QUARANTINED:
        raise Refusal(Reason.QUARANTINED, "this approval was changed around the server: it is used for nothing")
    if state is not ApprovalState.PENDING:
        raise Refusal(Reason.ALREADY_DECIDED, f"it is {state} already: see `fleetctl approvals show`")


def signer_names(approval: Approval, people: People) -> list[str]:
    """Names of those who signed, by their grants."""
    keys = [people.keys_by_id.get(each.key_id) for each in approval.signed.signatures]
    return sorted({people.name_of(key) for key in keys if key is not None})


def _refused(detail: str) -> Refusal:
    return Refusal(Reason.INTENT_REFUSED, detail)
