"""Requests of probes: what a node signs when it calls the next one, and what it takes from who calls it. Pure.

The statement that one node signs follows from the one that it was called with: all but the index of the hop is the
same, and its bytes are the serialisation with fields in the order of their numbers and nothing else. So the source
knows the bytes that every node of the path was called with, nothing that a node wrote travels further than to the next
one, and no unknown field carries anything along (docs/protocol.md, "Probes").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fleet.envelope import Domain, EnvelopeError, Signer, verify_one
from fleet.errors import Reason, Refusal
from fleet.v1 import probe_pb2, route_pb2, trust_pb2

MAX_NODES = 5
"""Of a path: four hops."""
MAX_MESSAGE_BYTES = 4096
"""Of a request, and of an answer."""
MAX_AHEAD_MS = 10_000
"""So far ahead of server time a deadline may lie; nonces are remembered until it is over."""
AHEAD_MS = 5_000
"""So far ahead of server time the source sets it, though a walk takes less: the call itself says how long it waits, and
what two nodes take for server time may differ by this much, either way, before a path that works is refused."""
NONCE_BYTES = 16
MAX_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class Probe:
    """What is the same along a whole path.

    Args:
        cluster_id: cluster.
        route_id: route.
        generation: of the route.
        path: node ids from source to destination.
        nonce: 16 random bytes of the source.
        deadline_ms: Unix milliseconds, server time; for every hop the same.
    """

    cluster_id: str
    route_id: str
    generation: int
    path: tuple[str, ...]
    nonce: bytes
    deadline_ms: int

    def statement(self, hop_index: int) -> bytes:
        """The statement that the node at `hop_index` is called with."""
        return probe_pb2.ProbeStatement(
            cluster_id=self.cluster_id,
            route_id=self.route_id,
            generation=self.generation,
            path=self.path,
            hop_index=hop_index,
            nonce=self.nonce,
            deadline_ms=self.deadline_ms,
        ).SerializeToString()


def request(probe: Probe, hop_index: int, signer: Signer) -> bytes:
    """The serialised WalkRequest to the node at `hop_index`, signed by the one before it."""
    signed = signer.sign(Domain.PROBE, probe.statement(hop_index))
    return probe_pb2.WalkRequest(signed=signed).SerializeToString()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read; nothing of it is proven yet.

    Args:
        probe: what is asked for.
        hop_index: of the node that is called.
        signed: as received.
    """

    probe: Probe
    hop_index: int
    signed: trust_pb2.Signed

    @property
    def caller(self) -> str:
        """The node that says that it calls; of a shape that was checked."""
        return self.probe.path[self.hop_index - 1]

    @property
    def is_last(self) -> bool:
        """Whether the node that is called is the destination."""
        return self.hop_index == len(self.probe.path) - 1


def read_request(raw: bytes) -> Asked:
    """Read a WalkRequest, of which nothing is believed yet.

    Raises:
        Refusal: OVERSIZE, or MALFORMED: it is none, or holds more than one may.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise Refusal(Reason.OVERSIZE, f"the probe has {len(raw)} bytes; at most {MAX_MESSAGE_BYTES} are taken")
    try:
        signed = probe_pb2.WalkRequest.FromString(raw).signed
        said = probe_pb2.ProbeStatement.FromString(signed.statement)
    except DecodeError:
        raise Refusal(Reason.MALFORMED, "the request is no WalkRequest") from None
    probe = Probe(
        said.cluster_id, said.route_id, said.generation, tuple(said.path), said.nonce, said.deadline_ms
    )  # fmt: skip
    whole = rebuilt(signed)
    if (
        whole is None
        or probe_pb2.WalkRequest(signed=whole).SerializeToString() != raw
        or probe.statement(said.hop_index) != signed.statement
    ):
        raise Refusal(Reason.MALFORMED, "the probe holds something that is no part of one: nothing travels along")
    return Asked(probe, said.hop_index, signed)


def check_shape(asked: Asked, *, cluster_id: str, node_id: str, now_ms: int) -> None:
    """Check what a request says of itself, before anything is computed for it.

    Args:
        cluster_id: of the node that is called.
        node_id: the node that is called.
        now_ms: server time.

    Raises:
        Refusal: MALFORMED, TOO_MANY_HOPS, LOOP, RELAY_IS_END, NOT_MY_HOP, FOREIGN (another cluster) or EXPIRED.
    """
    probe, path = asked.probe, asked.probe.path
    if len(path) > MAX_NODES:
        raise Refusal(Reason.TOO_MANY_HOPS, f"the path has {len(path) - 1} hops; at most {MAX_NODES - 1} are walked")
    ids = (probe.cluster_id, probe.route_id, *path)
    if len(path) < 2 or len(probe.nonce) != NONCE_BYTES or not all(0 < len(each) <= MAX_ID_CHARS for each in ids):
        raise Refusal(
            Reason.MALFORMED,
            f"a probe has two nodes or more, ids of 1 to 64 characters and {NONCE_BYTES} bytes of nonce",
        )
    check_path(path)
    if not 0 < asked.hop_index < len(path) or path[asked.hop_index] != node_id:
        raise Refusal(Reason.NOT_MY_HOP, "this node does not stand at that index of the path")
    if probe.cluster_id != cluster_id:
        raise Refusal(Reason.FOREIGN, "the probe is of another cluster")
    if now_ms >= probe.deadline_ms:
        raise Refusal(Reason.EXPIRED, "the deadline is over: compare what both nodes take for server time")
    if probe.deadline_ms > now_ms + MAX_AHEAD_MS:
        raise Refusal(
            Reason.EXPIRED,
            f"the deadline lies more than {MAX_AHEAD_MS // 1000} s ahead: compare what both nodes take for server time",
        )


def check_path(path: Sequence[str]) -> None:
    """Whether a path leads from one node to another over others.

    Raises:
        Refusal: LOOP or RELAY_IS_END.
    """
    ends, relays = {path[0], path[-1]}, path[1:-1]
    if len(ends) == 1:
        raise Refusal(Reason.LOOP, "the route leads from a node to itself")
    if ends & set(relays):
        raise Refusal(Reason.RELAY_IS_END, "an end of the route stands in the path as a relay as well")
    if len(set(relays)) != len(relays):
        raise Refusal(Reason.LOOP, "a node stands twice in the path")


def check_proof(asked: Asked, caller: route_pb2.Peer) -> None:
    """Whether the node before this one in the path signed the request.

    Args:
        caller: that node, as the snapshot knows it.

    Raises:
        Refusal: BAD_PROOF.
    """
    try:
        verify_one(asked.signed, domain=Domain.PROBE, public_key=caller.identity_key)
    except EnvelopeError:
        raise Refusal(
            Reason.BAD_PROOF, "the node before this one in the path did not sign that with the key of the snapshot"
        ) from None


def check_route(asked: Asked, configs: Sequence[route_pb2.RouteConfig], holds_lease: Callable[[], bool]) -> None:
    """Whether the called node takes part in that path: it answers and relays what its own snapshot says, nothing else.

    Args:
        configs: of that route, the one in force first, then the one before while it counts.
        holds_lease: whether the node has an unexpired lease to relay that route; asked where one is needed.

    Raises:
        Refusal: UNKNOWN_ROUTE, UNKNOWN_GENERATION or LEASE_EXPIRED.
    """
    if not configs:
        raise Refusal(Reason.UNKNOWN_ROUTE, "this node's snapshot has no such route")
    effective = _is_effective(list(asked.probe.path), configs)
    if effective is None:
        raise Refusal(Reason.UNKNOWN_GENERATION, "this node's snapshot has the route with other paths")
    if effective and not asked.is_last and not holds_lease():
        raise Refusal(Reason.LEASE_EXPIRED, "this node holds no lease to relay the route any more")


def _is_effective(path: list[str], configs: Sequence[route_pb2.RouteConfig]) -> bool | None:
    """Whether the newest config that names the path has it as the effective one; None when none names it.

    The number of the generation decides nothing: a node that hears of a decision first would meet refusals by the
    others, though they knew the path as a candidate all along.
    """
    for config in configs:
        if config.path == path:
            return True
        if any(candidate.path == path for candidate in config.candidates):
            return False
    return None


def rebuilt(signed: trust_pb2.Signed) -> trust_pb2.Signed | None:
    """The envelope with its one signature and nothing else; None when it has another number of them."""
    if len(signed.signatures) != 1:
        return None
    only = signed.signatures[0]
    signature = trust_pb2.Signature(key_id=only.key_id, value=only.value)
    return trust_pb2.Signed(statement=signed.statement, signatures=[signature])
