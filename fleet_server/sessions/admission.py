"""Admission: who may come in now, and when the others come back.

The mental model: BeginHandshake is admitted against a rate that is sized from what handshakes have really cost here,
and from what gets done once they pile up. Who is not admitted has a slot of its own in line (`line`).
A challenge is the ticket for the rest: CompleteHandshake and Connect are not charged again, so nobody who was let in is
turned away halfway, unless proofs fail again and again. Each api_key has buckets of its own, so that one node in a loop
starves nobody, and other ones at each address, so that whoever stole one cannot use up the node's from elsewhere. Where
both come from one address a node has turns by its proof. Addresses alone only count for garbage and Enroll, for a whole
fleet may share one (docs/protocol.md, "Service Gateway").
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet_server.boundary import network_of
from fleet_server.observability.metrics import SessionMetrics
from fleet_server.sessions.line import ReturnLine
from fleet_server.sessions.rules import BucketTable, CostAverage, Throughput, UnderWay, admitted_per_s

_MAX_KEYS = 50_000
_MAX_ADDRESSES = 20_000
_MAX_PLACES = 4
"""In line, of one api_key: at so many addresses. At more of them it has to prove that it is the node."""
_AS_NODE = "by its proof"
"""Where a node stands in line that has proven itself; no address."""
_STAGES = ("begin", "complete", "claim")
_GONE_S = 10.0
"""After so long a handshake that went no further has gone: no stage of one is given more."""


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """Limits; the defaults suit a gateway on two cores.

    Args:
        share: part of one core that handshakes may use; all Python threads share one.
        unmeasured_cost_s: CPU seconds of a handshake that its handlers do not see: the database's threads, gRPC, new
            connections, the stream.
        guessed_cost_s: CPU seconds of a whole one, until the first was measured: what is promised before that has to be
            kept.
        least_per_s: handshakes that are always admitted in a second.
        most_per_s: never more.
        burst_s: seconds' worth of handshakes that may come at once, half of it kept for those who come to their slot.
        worked_on_s: seconds' worth of proofs that may be worked on at once; then nobody begins.
        worked_on_least: as many may be, however slow it is.
        max_delay_s: nobody is sent away for longer.
        key_per_s, key_burst: handshakes of one api_key from one address.
        failed_per_s, failed_burst: proofs of one api_key from one address that fail.
        poll_per_s, poll_burst: polls about one enrollment from one address.
        chain_per_s, chain_burst: trust chains for one address: after a rotation a whole fleet may ask from one.
        address_per_s, address_burst: refused garbage of one address (IPv6: one /64), and as many enrollments.
    """

    share: float = 0.75
    unmeasured_cost_s: float = 0.0018
    guessed_cost_s: float = 0.003
    least_per_s: float = 50.0
    most_per_s: float = 2000.0
    burst_s: float = 0.5
    worked_on_s: float = 0.25
    worked_on_least: int = 32
    max_delay_s: float = 60.0
    key_per_s: float = 0.5
    key_burst: float = 20.0
    failed_per_s: float = 0.5
    failed_burst: float = 20.0
    poll_per_s: float = 2.0
    poll_burst: float = 20.0
    chain_per_s: float = 50.0
    chain_burst: float = 500.0
    address_per_s: float = 5.0
    address_burst: float = 100.0

    @classmethod
    def at(cls, rate_per_s: float) -> AdmissionPolicy:
        """A fixed rate; 0 follows what handshakes cost."""
        return cls(least_per_s=rate_per_s, most_per_s=rate_per_s) if rate_per_s else cls()


@dataclass(slots=True)
class Payment:
    """What a proof costs.

    Args:
        kept: whether it is even when the server is too busy for what was proven.
    """

    kept: bool = False


class Admission:
    """Belongs to the event loop.

    Args:
        cpu_s: CPU seconds of the calling thread.
        chance: random number in [0, 1).
    """

    def __init__(
        self,
        *,
        clock: Clock,
        metrics: SessionMetrics,
        policy: AdmissionPolicy | None = None,
        cpu_s: Callable[[], float] = time.thread_time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._policy = policy or AdmissionPolicy()
        self._cpu_s = cpu_s
        self._chance = chance
        self._cost = CostAverage(self._policy.unmeasured_cost_s, guess_s=self._policy.guessed_cost_s, stages=_STAGES)
        self.admitted = 0
        """Handshakes that were let in since the start."""
        self.handshakes_cpu_s = 0.0
        """CPU seconds that they took of the event loop, as far as that is known."""
        now_s = clock.monotonic()
        self._worked_on = 0
        self._throughput = Throughput(now_s)
        self._done_per_s = math.inf
        self._under_way: UnderWay[bytes] = UnderWay(stale_s=_GONE_S, max_keys=_MAX_KEYS)
        self._line = ReturnLine(self.rate_per_s, self._burst(), now_s, max_delay_s=self._policy.max_delay_s)
        self._keys: BucketTable[tuple[bytes, str]] = BucketTable(
            rate_per_s=self._policy.key_per_s, burst=self._policy.key_burst, max_keys=_MAX_KEYS
        )
        self._failed: BucketTable[tuple[bytes, str]] = BucketTable(
            rate_per_s=self._policy.failed_per_s, burst=self._policy.failed_burst, max_keys=_MAX_KEYS
        )
        self._nodes: BucketTable[bytes] = BucketTable(
            rate_per_s=self._policy.key_per_s, burst=self._policy.key_burst, max_keys=_MAX_KEYS
        )
        self._failed_nodes: BucketTable[bytes] = BucketTable(
            rate_per_s=self._policy.failed_per_s, burst=self._policy.failed_burst, max_keys=_MAX_KEYS
        )
        self._addresses: BucketTable[str] = BucketTable(
            rate_per_s=self._policy.address_per_s, burst=self._policy.address_burst, max_keys=_MAX_ADDRESSES
        )

        self._enrollments: BucketTable[str] = BucketTable(
            rate_per_s=self._policy.address_per_s, burst=self._policy.address_burst, max_keys=_MAX_ADDRESSES
        )

        self._polls: BucketTable[tuple[str, str]] = BucketTable(
            rate_per_s=self._policy.poll_per_s, burst=self._policy.poll_burst, max_keys=_MAX_KEYS
        )

        self._chains: BucketTable[str] = BucketTable(
            rate_per_s=self._policy.chain_per_s, burst=self._policy.chain_burst, max_keys=_MAX_ADDRESSES
        )

    @property
    def policy(self) -> AdmissionPolicy:
        """The limits."""
        return self._policy

    @property
    def rate_per_s(self) -> float:
        """Handshakes that are admitted per second now: by their cost, or by what gets done by one that is behind."""
        policy = self._policy
        return max(policy.least_per_s, min(self._by_cost_per_s, self._done_per_s))

    @property
    def _by_cost_per_s(self) -> float:
        policy = self._policy
        return admitted_per_s(
            self._cost.total_s(), share=policy.share, least=policy.least_per_s, most=policy.most_per_s
        )

    @property
    def under_way(self) -> int:
        """Handshakes that were let in and are no streams yet, of each api_key one."""
        return self._under_way.count(self._clock.monotonic())

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Measure the CPU that a stretch without an await costs; only what succeeds counts."""
        started_s = self._cpu_s()
        yield
        spent_s = self._cpu_s() - started_s
        self._cost.observe(stage, spent_s)
        self.handshakes_cpu_s += spent_s

    def admit_handshake(self, key_digest: bytes, address: str) -> bool:
        """Let a caller with a genuine api_key begin. False once that has used up its turns from there: its node, which
        is told from a thief by its proof alone, may owe the turn until `admit_owing`.

        Raises:
            Refusal: OVERLOADED with the delay after which this caller is to come back.
        """
        network, now_s = network_of(address), self._clock.monotonic()
        places = self._line.places(key_digest, now_s)
        elsewhere = network not in places and (_AS_NODE in places or len(places) >= _MAX_PLACES)
        if self._keys.delay_s((key_digest, network), now_s) or elsewhere:
            self._metrics.rate_limited.labels("BeginHandshake", "credential").inc()
            return False
        self._admit(key_digest, network, now_s)
        return True

    def admit_owing(self, key_digest: bytes) -> None:
        """Let a node go on that began without a turn and has proven itself: it has turns as itself, wherever it is.

        Raises:
            Refusal: OVERLOADED with the delay after which this caller is to come back.
        """
        now_s = self._clock.monotonic()
        delay_s = self._nodes.delay_s(key_digest, now_s)
        if delay_s:
            self._metrics.rate_limited.labels("CompleteHandshake", "credential").inc()
            raise Refusal(
                Reason.OVERLOADED,
                "this node begins too many handshakes: look for a restart loop, or for a second machine with its keys",
                retry_after_s=delay_s,
            )
        self._admit(key_digest, _AS_NODE, now_s)

    def _admit(self, key_digest: bytes, where: str, now_s: float) -> None:
        self._look(now_s)
        self._line.pace(self.rate_per_s, self._burst(), now_s)
        delay_s = self._line.arrive(
            key_digest, where, now_s, chance=self._chance(), full=self._worked_on >= self._most_worked_on()
        )
        if delay_s:
            self._metrics.rate_limited.labels("BeginHandshake", "concurrency").inc()
            raise _overloaded(delay_s)
        self._under_way.begin(key_digest, now_s)
        self.admitted += 1
        self.handshakes_cpu_s += self._policy.unmeasured_cost_s

    def _look(self, now_s: float) -> None:
        """See whether what was let in piles up, and how much is got done while it does."""
        behind = self._worked_on >= self._most_worked_on() / 2
        self._done_per_s = self._throughput.per_s(
            now_s, behind=behind, least=self._policy.least_per_s, most=self._by_cost_per_s
        )

    def _most_worked_on(self) -> float:
        return max(self._policy.worked_on_least, self.rate_per_s * self._policy.worked_on_s)

    @contextmanager
    def proving(
        self, rpc: str, key_digest: bytes, address: str, is_node: Callable[[], bool] = lambda: False
    ) -> Iterator[Payment]:
        """Around the work for a proof that came with a genuine api_key: only failures cost. Each is paid for in
        advance, for many can be under way at once.

        Args:
            is_node: whether the proof is by the api_key's node, as far as that is known without a query. A node pays as
                itself where others who use its api_key have used up what comes from there.

        Raises:
            Refusal: OVERLOADED once proofs of this api_key from this address have failed too often.
        """
        caller, now_s = (key_digest, network_of(address)), self._clock.monotonic()
        delay_s = self._failed.delay_s(caller, now_s)
        give_back = partial(self._failed.give_back, caller)
        if delay_s and is_node():
            delay_s = self._failed_nodes.delay_s(key_digest, now_s)
            give_back = partial(self._failed_nodes.give_back, key_digest)
        if delay_s:
            self._metrics.rate_limited.labels(rpc, "credential").inc()
            raise Refusal(
                Reason.OVERLOADED,
                "what this api_key comes with is refused again and again: if this is its node, look into its log for"
                " why; if not, rotate the api_key",
                retry_after_s=delay_s,
            )
        payment = Payment()
        try:
            with self._working():
                yield payment
        except Refusal as refusal:
            self._under_way.end(key_digest)
            if refusal.reason in (Reason.UNAVAILABLE, Reason.OVERLOADED) and not payment.kept:
                give_back()
            raise
        give_back()
        if rpc == "Connect":
            self._under_way.end(key_digest)
            self._throughput.done()

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._worked_on += 1
        try:
            yield
        finally:
            self._worked_on -= 1
            self._look(self._clock.monotonic())

    def overloaded(self) -> Refusal:
        """A refusal for load, of somebody whose credential was not looked at: it gets no slot."""
        return _overloaded(self._line.delay_s(self._clock.monotonic(), self._chance()))

    def charge_garbage(self, rpc: str, address: str) -> None:
        """Somebody without a genuine credential called; an address that goes on with it is told to stay away.

        Raises:
            Refusal: OVERLOADED once the address has used up its bucket.
        """
        self._charge(self._addresses, rpc, address)

    def admit_enroll(self, address: str) -> None:
        """Let an address enroll with a genuine join token.

        Raises:
            Refusal: OVERLOADED once the address has used up its bucket for it.
        """
        self._charge(self._enrollments, "Enroll", address)

    def admit_chain(self, address: str) -> None:
        """Let an address ask for the trust chain, which needs no credential and may be long.

        Raises:
            Refusal: OVERLOADED once the address has used up its bucket for it.
        """
        self._charge(self._chains, "GetTrustChain", address)

    def admit_poll(self, enrollment_id: str, address: str) -> None:
        """Let an address ask about a genuine enrollment; who it is shows only once that was read. A poll that somebody
        recorded may be played again from elsewhere, and takes nothing from the node.

        Raises:
            Refusal: OVERLOADED once the two of them have used up their bucket.
        """
        delay_s = self._polls.delay_s((enrollment_id, network_of(address)), self._clock.monotonic())
        if delay_s:
            self._metrics.rate_limited.labels("GetBootstrap", "credential").inc()
            raise Refusal(
                Reason.OVERLOADED,
                "this enrollment is asked about too often: wait, and look for a second node with its folder",
                retry_after_s=delay_s,
            )

    def _charge(self, buckets: BucketTable[str], rpc: str, address: str) -> None:
        delay_s = buckets.delay_s(network_of(address), self._clock.monotonic())
        if delay_s:
            self._metrics.rate_limited.labels(rpc, "address").inc()
            raise Refusal(
                Reason.OVERLOADED,
                "too many calls without a credential from this address: wait",
                # Callers behind one address share its bucket: the same delay for all would bring all back at once.
                retry_after_s=delay_s * (1.0 + 9.0 * self._chance()),
            )

    def _burst(self) -> float:
        return max(1.0, self.rate_per_s * self._policy.burst_s)


def _overloaded(delay_s: float) -> Refusal:
    return Refusal(
        Reason.OVERLOADED,
        "the server takes back its nodes one after another: wait for your slot",
        retry_after_s=delay_s,
    )
