"""Who ordered what: the authority of an issue, and the MAC that ties each command's row to it.

A command's row holds ids, times and its place in the issue; actor, action and arguments stand once, in the issue's
row. The row's MAC covers both (docs/protocol.md, "Rows that confer authority"), so changing either, copying a row to
another node, or writing one by hand is found before anything is signed. A cancel is an order too: who asked for it is
under the same MAC. `command_runs`, which leads from an issue to its commands, confers nothing and has none (see
`run_store`).
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from fleet.sequence import digest_of_alike
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.commands import issue_store, store
from fleet_server.commands.issue_store import IssueRow
from fleet_server.commands.ports import RowSeal
from fleet_server.commands.rules import Spec
from fleet_server.commands.store import Connection
from fleet_server.trust.secrets import frame_fields

_DOMAIN = b"fleet.v1/command-issue\x00"
_ID_BYTES = 16
# What differs between the commands of one node, as `frame_fields` would frame it: command id, seq, place in the issue,
# end of its time, digest of the issue (which names the issue's own id). The node and who cancelled come after it.
_FIXED = struct.Struct(">16sqqq32s")
_FRAME = frame_fields(bytes(_FIXED.size))[: -_FIXED.size]
# SQLite keeps text in a column of numbers if somebody puts it there: a forged row must not stop the true ones.
_NOT_WHAT_WAS_WRITTEN = (DecodeError, ValueError, TypeError, AttributeError, OverflowError, struct.error)
_MAX_CACHED_BYTES = 32 * 1024 * 1024
_ENTRY_OVERHEAD_BYTES = 512


class Terms(NamedTuple):
    """What all commands of one spec of an issue say.

    Args:
        encoded: these, as the fields of a serialised `Command`.
    """

    actor: str
    issued_at_ms: int
    not_after_ms: int
    action: str
    arguments: bytes
    encoded: bytes

    def digester(self) -> Callable[[bytes, int], bytes]:
        """Digest of the command of these terms with an id and a seq, as its node will have it."""
        return digest_of_alike(command_pb2.Command.FromString(self.encoded))


@dataclass(frozen=True, slots=True)
class Authority:
    """What an operator ordered. `digest` covers all of it."""

    issue_id: str
    actor: str
    issued_at_ms: int
    specs: Sequence[admin_pb2.CommandSpec]
    digest: bytes
    size_bytes: int = field(compare=False)
    _terms: dict[tuple[int, int], Terms] = field(default_factory=dict, compare=False, repr=False)

    def terms(self, spec_no: int, not_after_ms: int) -> Terms:
        """What the commands of a spec say; any thread.

        Args:
            spec_no: place among `specs`.
            not_after_ms: as a command's row says, which its MAC covers.
        """
        terms = self._terms.get((spec_no, not_after_ms))
        if terms is None:
            spec = self.specs[spec_no]
            command = command_pb2.Command(
                actor=self.actor,
                issued_at_ms=self.issued_at_ms,
                not_after_ms=not_after_ms,
                action=spec.action,
                arguments=spec.arguments,
                intent=spec.intent if spec.HasField("intent") else None,
            )
            encoded = command.SerializeToString()
            terms = Terms(self.actor, self.issued_at_ms, not_after_ms, spec.action, spec.arguments, encoded)
            self._terms[spec_no, not_after_ms] = terms
        return terms


def encode_specs(specs: Iterable[Spec]) -> bytes:
    """Specs as they are stored and covered: the very bytes that were ordered."""
    commands = [
        admin_pb2.CommandSpec(action=spec.action, arguments=spec.arguments, intent=spec.intent) for spec in specs
    ]
    return admin_pb2.IssueCommandsRequest(commands=commands).SerializeToString(deterministic=True)


def read_authority(row: IssueRow) -> Authority:
    """The authority that an issue's row claims; the MACs of its commands tell whether it is true."""
    hasher = hashlib.sha256(_DOMAIN)
    for part in (
        row.issue_id.encode(),
        row.cluster_id.encode(),
        row.actor.encode(),
        row.issued_at_ms.to_bytes(8, "big", signed=True),
        row.not_after_ms.to_bytes(8, "big", signed=True),
        row.specs,
    ):
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    parsed = admin_pb2.IssueCommandsRequest.FromString(row.specs)
    return Authority(
        issue_id=row.issue_id,
        actor=row.actor,
        issued_at_ms=row.issued_at_ms,
        specs=tuple(parsed.commands),
        digest=hasher.digest(),
        size_bytes=len(row.specs) * 3 + _ENTRY_OVERHEAD_BYTES,
    )


class Authorities:
    """Authorities by issue id, and the MACs over them. Bounded in bytes; any thread may call.

    What is cached need not be believed: every use checks a command's MAC over the cached digest.

    Args:
        seal: MACs of the `commands` table.
    """

    def __init__(self, seal: RowSeal) -> None:
        self._seal = seal
        self._lock = threading.Lock()
        self._cached: OrderedDict[str, Authority] = OrderedDict()
        self._bytes = 0

    def put(self, authority: Authority) -> None:
        """Remember an authority."""
        with self._lock:
            previous = self._cached.pop(authority.issue_id, None)
            self._bytes += authority.size_bytes - (previous.size_bytes if previous else 0)
            self._cached[authority.issue_id] = authority
            while self._bytes > _MAX_CACHED_BYTES and len(self._cached) > 1:
                self._bytes -= self._cached.popitem(last=False)[1].size_bytes

    def peek(self, issue_id: str) -> Authority | None:
        """An authority if it is cached; for people and figures, never for signing."""
        return self._cached.get(issue_id)

    def load(self, conn: Connection, issue_ids: Iterable[str]) -> dict[str, Authority]:
        """Authorities by issue id; an issue that does not exist, or whose row cannot be read, is missing."""
        found: dict[str, Authority] = {}
        missing: list[str] = []
        with self._lock:
            for issue_id in dict.fromkeys(issue_ids):
                authority = self._cached.get(issue_id)
                if authority is None:
                    missing.append(issue_id)
                else:
                    self._cached.move_to_end(issue_id)
                    found[issue_id] = authority
        for row in issue_store.load_issues(conn, missing):
            try:
                authority = read_authority(row)
            except _NOT_WHAT_WAS_WRITTEN:
                continue  # a tampered row: its commands fail like those of an issue that does not exist
            found[authority.issue_id] = authority
            self.put(authority)
        return found

    def seal(
        self,
        authority: Authority,
        command_id: bytes,
        node_id: str,
        seq: int,
        spec_no: int,
        not_after_ms: int,
        cancel_requested_by: str = "",
    ) -> bytes:
        """MAC of one command's row."""
        fixed = _FIXED.pack(command_id, seq, spec_no, not_after_ms, authority.digest)
        return self._seal.compute_framed(_FRAME + fixed + _whose(node_id, cancel_requested_by))

    def intact(self, authority: Authority | None, row: store.AuthorityColumns) -> bool:
        """Whether a command's row and its issue's are what the server wrote."""
        try:
            if authority is None or not 0 <= row.spec_no < len(authority.specs) or len(row.command_id) != _ID_BYTES:
                return False
            fixed = _FIXED.pack(row.command_id, row.seq, row.spec_no, row.not_after_ms, authority.digest)
            return self._seal.verify_framed(row.mac, _FRAME + fixed + _whose(row.node_id, row.cancel_requested_by))
        except _NOT_WHAT_WAS_WRITTEN:
            return False


@lru_cache(maxsize=16_384)
def _whose(node_id: str, cancel_requested_by: str) -> bytes:
    """The framed rest of a command's fields: the same for all commands of a node that nobody cancelled."""
    return frame_fields(node_id, cancel_requested_by)
