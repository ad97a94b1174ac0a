"""Bounds what may be asked without a credential."""

from __future__ import annotations

from fleet_server.boundary import network_of
from fleet_server.sessions.rules import BucketTable, TokenBucket

_MAX_ADDRESSES = 20_000


class Strangers:
    """Bounds calls without credentials: of all together, and of each address, so that one leaves room for others.

    Args:
        now_s: monotonic seconds.
        per_s, burst: of all addresses together.
        address_per_s, address_burst: of one (IPv6: one /64).
    """

    def __init__(
        self,
        now_s: float,
        *,
        per_s: float = 5.0,
        burst: float = 20.0,
        address_per_s: float = 1.0,
        address_burst: float = 10.0,
    ) -> None:
        self._all = TokenBucket(per_s, burst, now_s)
        self._addresses: BucketTable[str] = BucketTable(
            rate_per_s=address_per_s, burst=address_burst, max_keys=_MAX_ADDRESSES
        )

    def take(self, address: str, now_s: float) -> bool:
        """One more call from there; False for too many."""
        return not self._addresses.delay_s(network_of(address), now_s) and self._all.take(now_s)
