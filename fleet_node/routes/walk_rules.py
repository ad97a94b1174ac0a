"""Answers of probes: what a node testifies, and what the testimony of all shows. Pure.

Each node of a path calls the next one and signs a record of what came of that. Whoever calls verifies every record of
the answer, so a record that does not verify in an answer is the doing of whoever gave that answer: an honest relay says
BAD_RECORD in its own record, and passes nothing on that it could not verify (docs/protocol.md, "Probes").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.message import DecodeError

from fleet.envelope import Domain, EnvelopeError, Signer, verify_one
from fleet.errors import Reason
from fleet.v1 import probe_pb2, trust_pb2
from fleet_node.routes.probe_rules import MAX_MESSAGE_BYTES, Asked, Probe, rebuilt

END = probe_pb2.ONWARD_RESULT_UNSPECIFIED
ANSWERED = probe_pb2.ONWARD_RESULT_ANSWERED
UNREACHABLE = probe_pb2.ONWARD_RESULT_UNREACHABLE
REFUSED = probe_pb2.ONWARD_RESULT_REFUSED
BAD_RECORD = probe_pb2.ONWARD_RESULT_BAD_RECORD
WRONG_NODE = probe_pb2.ONWARD_RESULT_WRONG_NODE

_MAX_US = 2**32 - 1


class WalkState(StrEnum):
    """What came of one walk."""

    ANSWERED = "ANSWERED"  # by the destination, over the expected nodes, all proven
    DRIFT = "DRIFT"  # another node answered than expected, or somebody lied
    UNREACHABLE = "UNREACHABLE"  # no answer, or a refusal
    INCONCLUSIVE = "INCONCLUSIVE"  # the nodes hold different configs for a moment, or were busy: it says nothing


class Failure(StrEnum):
    """How a walk failed where nobody refused it; refusals have their own reasons."""

    TIMED_OUT = "TIMED_OUT"  # connected, and no answer in time
    UNREACHABLE = "UNREACHABLE"  # nobody can be connected to
    NO_ENDPOINT = "NO_ENDPOINT"  # the snapshot does not say where its listener is
    REFUSED = "REFUSED"  # for a reason that is none of a probe's
    BAD_RECORD = "BAD_RECORD"  # a record that does not verify
    WRONG_NODE = "WRONG_NODE"  # another node of the snapshot answered
    UNKNOWN_NODE = "UNKNOWN_NODE"  # somebody answered whom the snapshot does not know


REASONS = frozenset(
    {
        Reason.TOO_MANY_HOPS,
        Reason.LOOP,
        Reason.RELAY_IS_END,
        Reason.NOT_MY_HOP,
        Reason.FOREIGN,
        Reason.REPLAYED,
        Reason.EXPIRED,
        Reason.OVERSIZE,
        Reason.RATE_LIMITED,
        Reason.UNKNOWN_ROUTE,
        Reason.UNKNOWN_GENERATION,
        Reason.LEASE_EXPIRED,
        Reason.BAD_PROOF,
        Reason.MALFORMED,
        Reason.PROTOCOL_TOO_OLD,
        Reason.INTERNAL,
    }
)
"""What a probe may be refused for. A record names nothing else, so that no word of it carries anything along."""
# FOREIGN as well: a node whose first snapshot with this route is on its way knows not even the caller.
_SAYS_NOTHING = frozenset({Reason.FOREIGN, Reason.UNKNOWN_ROUTE, Reason.UNKNOWN_GENERATION, Reason.RATE_LIMITED})
_NODE_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""As the server reads one in a finding: another would have it pass over the whole finding, and with it the liar."""
_WORDS: dict[int, frozenset[str]] = {
    END: frozenset({""}),
    ANSWERED: frozenset({""}),
    UNREACHABLE: frozenset({Failure.TIMED_OUT, Failure.UNREACHABLE, Failure.NO_ENDPOINT}),
    REFUSED: REASONS | {Failure.REFUSED},
    BAD_RECORD: frozenset({Failure.BAD_RECORD}),
    WRONG_NODE: frozenset({Failure.WRONG_NODE, Failure.UNKNOWN_NODE}),
}


class BadRecordError(Exception):
    """An answer does not prove what it says."""


@dataclass(frozen=True, slots=True)
class WalkResult:
    """What one walk showed.

    Args:
        path: node ids expected, source and destination included.
        observed: node ids that proved themselves, the source first; equals `path` when it answered. The last one may be
            a node that answered in place of the expected one.
        rtt_us: microseconds of the whole walk, but for the source's own connecting; 0 unless it answered.
        first_hop_us: microseconds to the first hop and back alone; 0 when that did not answer.
        state: what it came to.
        failure: stable word for how it failed; empty when it answered.
        failed_hop: index in `path` of the node that did not answer as it should; 0 when none failed.
        blamed: node that evidence names as the cause, which is what the source saw itself or what the node before
            the blamed one signed; empty when there is none.
    """

    path: tuple[str, ...]
    observed: tuple[str, ...]
    rtt_us: int
    first_hop_us: int
    state: WalkState
    failure: str = ""
    failed_hop: int = 0
    blamed: str = ""


@dataclass(frozen=True, slots=True)
class Testimony:
    """Verified records of an answer, the first hop's first; each with its signature as it travels."""

    records: tuple[probe_pb2.HopRecord, ...] = ()
    signed: tuple[trust_pb2.Signed, ...] = ()


@dataclass(frozen=True, slots=True)
class Onward:
    """What came of calling the next node of a path.

    Args:
        result: what it was; never `END`.
        elapsed_us: microseconds from call to answer. At the source connecting is left out, and it is 0 without an
            answer; a relay tells all the time that it took.
        failure: stable word when it did not answer.
        node_id: who answered in its place, if known.
        silent: it proved itself over a connection made for this call, and then said nothing.
        testimony: of the answer.
    """

    result: probe_pb2.OnwardResult.ValueType
    elapsed_us: int = 0
    failure: str = ""
    node_id: str = ""
    silent: bool = False
    testimony: Testimony = Testimony()


def refused(reason: Reason) -> Onward:
    """The next node refused."""
    return Onward(REFUSED, failure=str(reason) if reason in REASONS else Failure.REFUSED)


def answer(asked: Asked, onward: Onward | None, node_id: str, signer: Signer) -> bytes:
    """The serialised WalkResponse of a node that was called.

    Args:
        asked: what it was called with.
        onward: what came of its own call; None when it is the destination.
        node_id: the node that testifies.
        signer: its identity key.
    """
    onward = onward or Onward(END)
    record = probe_pb2.HopRecord(
        node_id=node_id,
        nonce=asked.probe.nonce,
        hop_index=asked.hop_index,
        onward_us=min(onward.elapsed_us, _MAX_US),
        onward=onward.result,
        onward_node_id=onward.node_id,
        failure=onward.failure,
        statement_sha256=hashlib.sha256(asked.signed.statement).digest(),
    )
    own = signer.sign(Domain.PROBE_HOP, record.SerializeToString())
    return probe_pb2.WalkResponse(hops=[*reversed(onward.testimony.signed), own]).SerializeToString()


def read_answer(raw: bytes, probe: Probe, hop_index: int, key_of: Callable[[str], bytes]) -> Testimony:
    """Verify the answer of the node at `hop_index`, down to its last byte.

    Args:
        raw: a serialised WalkResponse.
        probe: what was asked.
        hop_index: of the node that was called.
        key_of: identity key (raw) of a node; empty when the snapshot has none.

    Raises:
        BadRecordError: a record is missing, too much, forged, of another probe, or contradicts another.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise BadRecordError("the answer is too large")
    try:
        hops = probe_pb2.WalkResponse.FromString(raw).hops
    except DecodeError:
        raise BadRecordError("the answer is no WalkResponse") from None
    if not 1 <= len(hops) <= len(probe.path) - hop_index:
        raise BadRecordError("the answer has too few or too many records")
    signed = tuple(_one_signature(each) for each in reversed(hops))
    if probe_pb2.WalkResponse(hops=reversed(signed)).SerializeToString() != raw:
        raise BadRecordError("the answer holds something that is no record")
    records = tuple(_record(each, probe, hop_index + place, key_of) for place, each in enumerate(signed))
    if any(record.onward != ANSWERED for record in records[:-1]) or records[-1].onward == ANSWERED:
        raise BadRecordError("the records contradict one another, or one was left out")
    return Testimony(records, signed)


def judge(probe: Probe, onward: Onward) -> WalkResult:
    """What a walk showed, from what came of the source's own call."""
    path, records = probe.path, onward.testimony.records
    hop, last = 1, onward
    for record in records:
        if record.onward == END:
            first_hop_us = _first_hop_us(onward, records)
            return WalkResult(path, path, onward.elapsed_us, first_hop_us, WalkState.ANSWERED)
        if record.onward != ANSWERED:
            last = Onward(record.onward, record.onward_us, record.failure, record.onward_node_id)
        hop += 1
    return _failed(path, hop, last, _first_hop_us(onward, records) if records else 0)


def _failed(path: tuple[str, ...], hop: int, onward: Onward, first_hop_us: int) -> WalkResult:
    observed, blamed, state = path[:hop], "", WalkState.UNREACHABLE
    if onward.result == BAD_RECORD:
        state, blamed = WalkState.DRIFT, path[hop]
    elif onward.result == WRONG_NODE:
        state, blamed = WalkState.DRIFT, onward.node_id
        observed = (*observed, onward.node_id) if onward.node_id else observed
    elif onward.result == REFUSED and onward.failure in _SAYS_NOTHING:
        state = WalkState.INCONCLUSIVE
    elif onward.silent:
        blamed = path[hop]
    return WalkResult(path, observed, 0, first_hop_us, state, str(onward.failure), hop, blamed)


def _first_hop_us(onward: Onward, records: Sequence[probe_pb2.HopRecord]) -> int:
    return max(1, onward.elapsed_us - records[0].onward_us)


def _one_signature(signed: trust_pb2.Signed) -> trust_pb2.Signed:
    whole = rebuilt(signed)
    if whole is None:
        raise BadRecordError("a record has another number of signatures than one")
    return whole


def _record(
    signed: trust_pb2.Signed, probe: Probe, hop_index: int, key_of: Callable[[str], bytes]
) -> probe_pb2.HopRecord:
    node_id = probe.path[hop_index]
    try:
        verify_one(signed, domain=Domain.PROBE_HOP, public_key=key_of(node_id))
        record = probe_pb2.HopRecord.FromString(signed.statement)
    except (EnvelopeError, DecodeError):
        raise BadRecordError(f"the record of hop {hop_index} is not signed by its node") from None
    expected = probe_pb2.HopRecord(
        node_id=node_id,
        nonce=probe.nonce,
        hop_index=hop_index,
        onward_us=record.onward_us,
        onward=record.onward,
        onward_node_id=record.onward_node_id,
        failure=record.failure,
        statement_sha256=hashlib.sha256(probe.statement(hop_index)).digest(),
    )
    if expected.SerializeToString() != signed.statement:
        raise BadRecordError(f"the record of hop {hop_index} is of another probe, or says more than a record may")
    is_last = hop_index == len(probe.path) - 1
    if (record.onward == END) != is_last or not _says_what_it_may(record, "" if is_last else probe.path[hop_index + 1]):
        raise BadRecordError(f"the record of hop {hop_index} contradicts itself")
    return record


def _says_what_it_may(record: probe_pb2.HopRecord, next_node_id: str) -> bool:
    if record.failure not in _WORDS.get(record.onward, frozenset()):
        return False
    if record.failure != Failure.WRONG_NODE:
        return not record.onward_node_id
    other = record.onward_node_id
    return _NODE_ID.fullmatch(other) is not None and other != next_node_id
