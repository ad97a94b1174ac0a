"""Which command key may sign for a node, and statements that one signed: pure rules on the bundle in force
(docs/protocol.md, "Trust").

The verifier says which domain it expects; neither that nor the signer class is taken from what came.
"""

from __future__ import annotations

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError
from fleet.sequence import StatementReason, StatementRefusal
from fleet.trust import TrustState
from fleet.v1 import trust_pb2

_DOMAINS = frozenset({Domain.COMMAND, Domain.CANCEL})
_VERIFYING_PHASES = frozenset({trust_pb2.KEY_PHASE_PREPARED, trust_pb2.KEY_PHASE_ACTIVE, trust_pb2.KEY_PHASE_RETIRED})


def command_signer(state: TrustState, key_id: bytes, *, site: str, now_ms: int) -> bytes:
    """Raw public key of a command key that may sign for `site` now.

    Raises:
        StatementRefusal: unknown, revoked, not yet or no longer valid, for another site, or the bundle itself is out
        of date.
    """
    if not state.fresh(now_ms):
        raise StatementRefusal(
            StatementReason.BUNDLE_EXPIRED,
            "the trust bundle has expired and none newer came, or its time is yet to come: commands are refused",
        )
    key = state.command_keys.get(key_id)
    if key is None:
        raise StatementRefusal(
            StatementReason.UNKNOWN_KEY,
            f"key {key_id.hex()} is no command key of bundle {state.version}",
        )
    if key.phase == trust_pb2.KEY_PHASE_REVOKED or key_id in state.revoked:
        raise StatementRefusal(StatementReason.KEY_REVOKED, f"command key {key_id.hex()} is revoked")
    if key.phase not in _VERIFYING_PHASES:  # a phase of a later version may mean anything: it verifies nothing here
        raise StatementRefusal(StatementReason.UNKNOWN_KEY, f"command key {key_id.hex()} is in no phase known here")
    if key.phase == trust_pb2.KEY_PHASE_RETIRED and not key.verify_until_ms:
        raise StatementRefusal(
            StatementReason.KEY_EXPIRED,
            f"command key {key_id.hex()} is retired, and its certificate names no end",
        )
    if now_ms < key.not_before_ms:
        raise StatementRefusal(
            StatementReason.KEY_NOT_YET_VALID,
            f"command key {key_id.hex()} is not valid yet",
        )
    if key.verify_until_ms and now_ms >= key.verify_until_ms:
        raise StatementRefusal(
            StatementReason.KEY_EXPIRED,
            f"command key {key_id.hex()} verifies nothing any more",
        )
    if key.site and key.site != site:
        raise StatementRefusal(
            StatementReason.WRONG_SITE,
            f"command key {key_id.hex()} is for site {key.site!r} only",
        )
    return key.public_key


def verify_command_envelope(
    state: TrustState,
    signed: trust_pb2.Signed,
    domain: Domain,
    *,
    site: str,
    now_ms: int,
) -> bytes:
    """Verify a command or cancel envelope and return its statement bytes.

    Args:
        state: bundle in force.
        signed: as received.
        domain: COMMAND or CANCEL.
        site: the node's own site.
        now_ms: server time, Unix milliseconds.

    Raises:
        StatementRefusal: exactly one signature by a command key that may sign now is needed.
        ValueError: another domain: a command key vouches for nothing else.
    """
    if domain not in _DOMAINS:
        raise ValueError(f"a command key signs no {domain}")
    if len(signed.signatures) != 1:
        raise StatementRefusal(
            StatementReason.MALFORMED,
            f"{len(signed.signatures)} signatures; exactly one is needed",
        )
    key_id = signed.signatures[0].key_id
    public_key = command_signer(state, key_id, site=site, now_ms=now_ms)
    try:
        return envelope.verify(signed, domain=domain, keys={key_id: public_key})
    except EnvelopeError as error:
        raise StatementRefusal(StatementReason(error.reason), error.detail) from error
