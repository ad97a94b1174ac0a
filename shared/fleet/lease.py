"""Expiry arithmetic and fencing epochs: who may act, and until when. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lease:
    """A right that ends by itself.

    Args:
        epoch: fencing token; grows with every holder, so that a late writer is recognised.
        expires_at_ms: Unix milliseconds on the granting side's clock.
    """

    epoch: int
    expires_at_ms: int

    def holds(self, now_ms: int) -> bool:
        """Whether the holder may still act."""
        return now_ms < self.expires_at_ms

    def renew(self, now_ms: int, ttl_ms: int) -> Lease:
        """The same right for longer; never shorter than it was.

        Raises:
            ValueError: it has expired, so another holder may act already.
        """
        if not self.holds(now_ms):
            raise ValueError("an expired lease cannot be renewed: take a new epoch")
        return Lease(self.epoch, max(self.expires_at_ms, now_ms + ttl_ms))

    def succeed(self, now_ms: int, ttl_ms: int) -> Lease:
        """The next holder's lease."""
        return Lease(self.epoch + 1, now_ms + ttl_ms)


def fenced(write_epoch: int, newest_epoch: int) -> bool:
    """Whether a write carries an epoch that a newer holder has overtaken."""
    return write_epoch < newest_epoch


def renew_after_ms(lease: Lease, now_ms: int) -> int:
    """Milliseconds until a holder should renew: at two thirds of what is left."""
    return max(0, (lease.expires_at_ms - now_ms) * 2 // 3)
