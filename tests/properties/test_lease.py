"""A lease ends by itself, is never shortened by renewing, and its successor fences every late writer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.lease import Lease, fenced, renew_after_ms

times_ms = st.integers(0, 2**45)
ttls_ms = st.integers(1, 2**30)
leases = st.builds(Lease, epoch=st.integers(0, 2**62), expires_at_ms=times_ms)


@given(lease=leases, now_ms=times_ms)
def test_it_holds_until_it_expires(lease: Lease, now_ms: int) -> None:
    assert lease.holds(now_ms) == (now_ms < lease.expires_at_ms)


@given(lease=leases, now_ms=times_ms, ttl_ms=ttls_ms)
def test_renewing_never_shortens_and_never_revives(lease: Lease, now_ms: int, ttl_ms: int) -> None:
    if not lease.holds(now_ms):
        with pytest.raises(ValueError, match="new epoch"):
            lease.renew(now_ms, ttl_ms)
        return
    renewed = lease.renew(now_ms, ttl_ms)
    assert renewed.epoch == lease.epoch
    assert renewed.expires_at_ms >= max(lease.expires_at_ms, now_ms + ttl_ms)
    assert renewed.holds(now_ms)


@given(lease=leases, now_ms=times_ms, ttl_ms=ttls_ms, holders=st.integers(1, 5))
def test_a_successor_fences_everybody_before_it(lease: Lease, now_ms: int, ttl_ms: int, holders: int) -> None:
    chain = [lease]
    for _ in range(holders):
        chain.append(chain[-1].succeed(now_ms, ttl_ms))
    newest = chain[-1]
    assert not fenced(newest.epoch, newest.epoch)
    assert all(fenced(older.epoch, newest.epoch) for older in chain[:-1])
    assert newest.holds(now_ms)


@given(lease=leases, now_ms=times_ms)
def test_renewal_comes_before_the_end(lease: Lease, now_ms: int) -> None:
    wait_ms = renew_after_ms(lease, now_ms)
    assert wait_ms >= 0
    if lease.holds(now_ms):
        assert lease.holds(now_ms + wait_ms)
    else:
        assert wait_ms == 0
