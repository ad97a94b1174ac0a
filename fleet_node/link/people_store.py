"""What the node verified of the people who may decide about protected actions, kept in a private file.

The server may leave out of a bundle what it likes, and may give a bundle that says less than the one before: what the
node verified once it keeps, and takes only what is newer (docs/protocol.md, "People").
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from fleet import people as rules
from fleet.clock import Clock, ServerTime
from fleet.identity import PrivateFileError, read_private, write_private
from fleet.logs import get_logger
from fleet.people import People
from fleet.trust import TrustState
from fleet.v1 import trust_pb2
from fleet_node.enrollment.membership import MembershipError

log = get_logger(__name__)

_FORMAT = 1


class PeopleStore:
    """Implements `PeoplePort`.

    Args:
        path: the file; one that is not there holds nothing, one about another pin is written over.
        cluster_id: the node's cluster.
        pin: SHA-256 of the owner's public key; empty when none is pinned.
        clock: the node's own.
        server_time: as heard from the server.

    Raises:
        MembershipError: the file is damaged.
    """

    def __init__(self, path: Path, *, cluster_id: str, pin: bytes, clock: Clock, server_time: ServerTime) -> None:
        self._path = path
        self._clock = clock
        self._server_time = server_time
        self._people, self._latest_signed_ms = load_people(path, cluster_id=cluster_id, pin=pin)
        self._saved = (self._people, self._latest_signed_ms)

    @property
    def people(self) -> People:
        """See `PeoplePort`."""
        return self._people

    @property
    def latest_signed_ms(self) -> int:
        """See `PeoplePort`."""
        return self._latest_signed_ms

    def take(self, states: Sequence[TrustState]) -> None:
        """Take what is newer in verified bundles, oldest first; it counts at once."""
        for state in states:
            said = trust_pb2.TrustBundleStatement.FromString(state.signed.statement)
            self._people, refused = rules.take(
                self._people, owners=said.owners, policy=said.policy, grants=said.role_grants
            )
            for error in refused if self._people.pin else ():
                log.warning("peoples_word_refused", reason=error.reason.value, detail=error.detail)
        self._latest_signed_ms = self._latest()

    async def save(self) -> None:
        """Make durable what is held. A disk that fails is tried again with the next bundle: until then the bundle's own
        file holds what is new."""
        held = (self._people, self._latest_signed_ms)
        if held == self._saved:
            return
        try:
            await asyncio.to_thread(write_private, self._path, _written(*held))
        except OSError as error:
            log.error("people_not_saved", error=str(error))
        else:
            self._saved = held

    def pin(self, pin: bytes, states: Sequence[TrustState]) -> None:
        """Begin again with another pin; the one that is pinned already changes nothing.

        Args:
            pin: SHA-256 of the owner's public key.
            states: bundles in force, to take from.
        """
        if pin != self._people.pin:
            log.warning("owner_pinned", pin=pin.hex())
            self._people = People(self._people.cluster_id, pin)
            self.take(states)

    def _latest(self) -> int:
        now_ms = [self._server_time.now_ms(), self._clock.now_ms(), self._latest_signed_ms]
        issued = self._people.issued_at_ms()
        believed = rules.latest_ms(now_ms, issued)
        return max([self._latest_signed_ms, *[one for one in issued if one <= believed]])


def load_people(path: Path, *, cluster_id: str, pin: bytes) -> tuple[People, int]:
    """What the file holds under `pin`, verified again, and the latest time of issue that was seen, Unix milliseconds.

    Raises:
        MembershipError: the file is damaged.
    """
    if not path.exists():
        return People(cluster_id, pin), 0
    try:
        found = json.loads(read_private(path))
        latest_signed_ms = int(found["latest_signed_ms"])
        kept = trust_pb2.TrustBundleStatement.FromString(base64.b64decode(found["statements"], validate=True))
        if found["format"] != _FORMAT:
            raise ValueError
        if bytes.fromhex(found["owner_pin"]) != pin:
            return People(cluster_id, pin), latest_signed_ms
    except (PrivateFileError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise MembershipError(
            f"{path} is damaged or of another version: restore it from a backup, or move it away and the next trust "
            "bundle brings again what people signed"
        ) from error
    return rules.restore(cluster_id, pin, kept), latest_signed_ms


def _written(people: People, latest_signed_ms: int) -> bytes:
    statements = rules.kept_form(people).SerializeToString()
    content = {
        "format": _FORMAT,
        "owner_pin": people.pin.hex(),
        "latest_signed_ms": latest_signed_ms,
        "statements": base64.b64encode(statements).decode(),
    }
    return json.dumps(content, indent=2).encode()
