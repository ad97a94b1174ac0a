"""Who speaks for a cluster: its authorities, told by its chain of bundles from a pinned key on. Pure.

A chain holds the first bundle of each generation, oldest first, and the newest bundle at its end. Whoever pinned an
authority of any generation finds it there, and from then on `trust.advance` judges every step (docs/protocol.md,
"Authorities").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fleet import envelope, trust
from fleet.trust import TrustError, TrustReason, TrustState
from fleet.v1 import trust_pb2


def from_pin(chain: Iterable[trust_pb2.Signed], *, cluster_id: str, authority_key: bytes) -> list[TrustState]:
    """Every step of a chain from the newest bundle of the pinned authority on; links before it are passed over.

    Raises:
        TrustError: no link is the pinned authority's, or a later one does not follow.
    """
    links = list(chain)
    pinned = [signed for signed in links if trust.claimed(signed).authority_key == authority_key]
    if not pinned:
        raise TrustError(TrustReason.WRONG_SIGNER, "no link of the chain is of the pinned authority")
    first = trust.first(pinned[-1], cluster_id=cluster_id, authority_key=authority_key)
    return [first, *trust.steps(first, links)]


def authorities(states: Sequence[TrustState]) -> dict[bytes, bytes]:
    """Key id -> raw public key of every authority of a chain, the pinned one first."""
    return {envelope.key_id(state.authority_key): state.authority_key for state in states}
