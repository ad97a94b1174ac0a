"""How much of what strangers and peers send is looked at: rates by token buckets, and nonces that were seen. Pure.

Rates are asked before anything is verified, so the name that a caller goes by counts only together with the address
that it calls from: a stranger who uses a peer's name uses up nobody's rate but its own.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fleet.errors import Reason, Refusal

_PROVEN = "proven"
"""In place of an address."""
_SWEEP_AFTER = 256
"""Nonces, after which those whose deadline is over are forgotten."""


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """What a probe listener takes.

    Args:
        all_per_s: probes a second from all together; `all_burst` at once.
        address_per_s: from one address, IPv6: one /64; `address_burst` at once.
        caller_per_s: of one caller at one address; `caller_burst` at once. Twice what 500 routes walk at the usual
            interval.
        read_s: seconds in which a request follows its call.
        in_flight: worked on at one time.
        in_flight_of_peer: of those, of one peer: what it may send at one time over one connection.
        strangers: connections at one time over which no peer has proven itself.
        stranger_s: seconds that one of them may last.
        silent_bytes: that a connection may send from one proof of a peer to the next; a peer sends at most what it
            walks at one time.
        peer_connections: of one peer at one time.
        nonces_per_caller: remembered of one caller until their deadlines are over.
        max_keys: addresses, and callers at addresses, whose rates are remembered.
    """

    all_per_s: float = 200.0
    all_burst: float = 800.0
    address_per_s: float = 100.0
    address_burst: float = 400.0
    caller_per_s: float = 100.0
    caller_burst: float = 400.0
    read_s: float = 1.0
    in_flight: int = 256
    in_flight_of_peer: int = 128
    strangers: int = 64
    stranger_s: float = 10.0
    silent_bytes: int = 256 * 1024
    peer_connections: int = 4
    nonces_per_caller: int = 1024
    max_keys: int = 512


class Buckets:
    """A token bucket for each key. The least lately used one is forgotten where there are too many.

    Args:
        per_s: tokens that come back a second.
        burst: tokens of a full bucket.
        max_keys: buckets that are remembered.
    """

    def __init__(self, per_s: float, burst: float, max_keys: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._max_keys = max_keys
        self._buckets: OrderedDict[tuple[str, ...], tuple[float, float]] = OrderedDict()

    def take(self, now_s: float, *key: str) -> bool:
        """Take a token at a monotonic time; False when there is none."""
        tokens, at_s = self._buckets.get(key, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - at_s) * self._per_s)
        taken = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if taken else tokens, now_s)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return taken


class SeenNonces:
    """Nonces of verified probes by caller, each until its deadline is over: then the probe is refused for that.

    Args:
        per_caller: remembered of one caller; one more is refused rather than another forgotten.
    """

    def __init__(self, per_caller: int) -> None:
        self._per_caller = per_caller
        self._seen: dict[str, dict[bytes, int]] = {}
        self._unswept = 0

    def add(self, caller: str, nonce: bytes, deadline_ms: int, now_ms: int) -> None:
        """Remember a nonce.

        Raises:
            Refusal: REPLAYED, or RATE_LIMITED when the caller has too many under way.
        """
        seen = self._seen.get(caller, {})
        if seen.get(nonce, now_ms) > now_ms:
            raise Refusal(Reason.REPLAYED, "this nonce was seen before: each walk has its own")
        if self._unswept >= _SWEEP_AFTER or len(seen) >= self._per_caller:
            self._sweep(now_ms)
            seen = self._seen.get(caller, {})
        if len(seen) >= self._per_caller:
            raise rate_limited()
        seen[nonce] = deadline_ms
        self._seen[caller] = seen
        self._unswept += 1

    def __len__(self) -> int:
        return sum(map(len, self._seen.values()))

    def _sweep(self, now_ms: int) -> None:
        kept = {
            caller: {nonce: until_ms for nonce, until_ms in seen.items() if until_ms > now_ms}
            for caller, seen in self._seen.items()
        }
        self._seen = {caller: seen for caller, seen in kept.items() if seen}
        self._unswept = 0


class Intake:
    """What a listener lets in.

    Args:
        limits: how much.
    """

    def __init__(self, limits: ProbeLimits) -> None:
        self._limits = limits
        self._all = Buckets(limits.all_per_s, limits.all_burst, 1)
        self._addresses = Buckets(limits.address_per_s, limits.address_burst, limits.max_keys)
        self._peers = Buckets(2 * limits.caller_per_s, 2 * limits.caller_burst, limits.max_keys)
        self._callers = Buckets(limits.caller_per_s, limits.caller_burst, limits.max_keys)
        self.nonces = SeenNonces(limits.nonces_per_caller)
        self._in_flight = 0
        self._in_flight_of: Counter[str] = Counter()

    def admit_call(self, address: str, now_s: float, peer: str = "") -> None:
        """Let a call in, of which only the address is known, and which peer proved itself over the same connection.

        Such a call counts with its peer, so that no stranger uses up what all together may send: a mesh that any
        stranger can blind reports routes as broken that are not.

        Args:
            peer: node id; empty: a stranger's connection.

        Raises:
            Refusal: RATE_LIMITED.
        """
        if peer:
            if not self._peers.take(now_s, peer):
                raise rate_limited()
            return
        # The address first: what one of them sends too much takes nothing of what all may send.
        if not self._addresses.take(now_s, network(address)) or not self._all.take(now_s):
            raise rate_limited()

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a probe is worked on.

        Raises:
            Refusal: RATE_LIMITED: too many are.
        """
        if self._in_flight >= self._limits.in_flight:
            raise rate_limited()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @contextmanager
    def working_for(self, peer: str) -> Iterator[None]:
        """While a probe of a peer that has proven itself is worked on.

        One whose probes all wait for a node that says nothing must not keep out those of everybody else.

        Raises:
            Refusal: RATE_LIMITED: too many of its own are.
        """
        if self._in_flight_of[peer] >= self._limits.in_flight_of_peer:
            raise rate_limited()
        self._in_flight_of[peer] += 1
        try:
            yield
        finally:
            self._in_flight_of[peer] -= 1
            if not self._in_flight_of[peer]:
                del self._in_flight_of[peer]

    def admit_caller(self, address: str, caller: str, now_s: float, *, proven: bool = False) -> None:
        """Let a probe in that says who calls.

        Args:
            proven: it called over this connection before: then strangers at its address, who may all be behind one
                gateway, use up none of its rate.

        Raises:
            Refusal: RATE_LIMITED.
        """
        if not self._callers.take(now_s, _PROVEN if proven else network(address), caller):
            raise rate_limited()


def rate_limited() -> Refusal:
    """More probes than the listener takes."""
    return Refusal(Reason.RATE_LIMITED, "too many probes: try again", retry_after_s=1.0)


def network(address: str) -> str:
    """What shares a bucket: whoever has an IPv6 address has 2^64 of them."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return ""
