"""Whose api_key it is that strangers use, so that its node is told from them without a query.

Where a stolen api_key is used from the node's own address, the two share the turns there, and the thief is quicker.
What the thief lacks is the identity key: once a proof by another key came with an api_key, the key of its node is
remembered, and a proof by that one goes on when the turns are used up. It is no credential: all checks follow.
"""

from __future__ import annotations

from collections import OrderedDict

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError
from fleet.v1 import trust_pb2

_MAX_KEYS = 10_000


class RememberedKeys:
    """Identity keys by the SHA-256 of an api_key; the one that was noted longest ago is forgotten first."""

    def __init__(self) -> None:
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()

    def note(self, key_digest: bytes, identity_key: bytes) -> None:
        """Somebody without it uses this node's api_key."""
        self._keys[key_digest] = identity_key
        self._keys.move_to_end(key_digest)
        if len(self._keys) > _MAX_KEYS:
            self._keys.popitem(last=False)

    def signed(self, key_digest: bytes, domain: Domain, proof: trust_pb2.Signed) -> bool:
        """Whether the node whose api_key that is made this proof, as far as it is remembered here."""
        identity_key = self._keys.get(key_digest)
        if identity_key is None:
            return False
        try:
            envelope.verify_one(proof, domain=domain, public_key=identity_key)
        except EnvelopeError:
            return False
        return True
