"""What the node verified of the people who may decide about protected actions, kept in a private file.

The server may leave out of a bundle what it likes, and may give a bundle that says less than the one before: what the
node verified once it keeps, and takes only what is newer (docs/protocol.md, "People").
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from fleet import people as rules
from fleet.clock import Clock, ServerTime
from fleet.former_policy import former_from_json
from fleet.identity import write_private
from fleet.logs import get_logger
from fleet.node_audit import NodeAuditKind
from fleet.people import People
from fleet.trust import TrustState
from fleet.v1 import trust_pb2
from fleet_node.enrollment.membership import MembershipError, read_state
from fleet_node.link.key_audit import Unheard
from fleet_node.link.ports import KeyAuditPort

log = get_logger(__name__)

_FORMAT = 1


class PeopleStore:
    """Implements `PeoplePort`.

    Args:
        path: the file; one that is not there holds nothing, and of one about another pin only what its policy protects
            counts.
        cluster_id: the node's cluster.
        pin: SHA-256 of the owner's public key; empty when none is pinned.
        clock: the node's own.
        server_time: as heard from the server.
        audit: told what is taken and what is refused.

    Raises:
        MembershipError: the file is damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        cluster_id: str,
        pin: bytes,
        clock: Clock,
        server_time: ServerTime,
        audit: KeyAuditPort | None = None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._server_time = server_time
        self._audit = audit or Unheard()
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

    def recall(self, state: TrustState) -> None:
        """Take what is newer in the bundle that a process finds on the disk; the next `take` makes it durable."""
        self._hold(*self._judged(self._people, [state]))

    async def take(self, states: Sequence[TrustState]) -> None:
        """Take what is newer in verified bundles, oldest first; it is durable before it counts.

        A bundle is kept only after this: the next one replaces it and may say nothing of people, so that what only a
        bundle holds can be made to be forgotten.

        Raises:
            OSError: it cannot be written; what was held before stands.
        """
        wanted = self._judged(self._people, states)
        await self._save(*wanted)
        self._hold(*wanted)

    async def pin(self, pin: bytes, states: Sequence[TrustState]) -> None:
        """Begin again with another pin; the one that is pinned already changes nothing. It counts also when it cannot
        be written: a person has written the pin itself, and a restart goes by that.

        Args:
            pin: SHA-256 of the owner's public key.
            states: bundles in force, to take from.
        """
        if pin == self._people.pin:
            return
        log.warning("owner_pinned", pin=pin.hex())
        self._people = rules.repin(self._people, pin)
        self._hold(*self._judged(self._people, states))
        try:
            await self._save(self._people, self._latest_signed_ms)
        except OSError as error:
            log.error("people_not_saved", error=str(error))

    def _hold(self, people: People, latest_signed_ms: int) -> None:
        if people is not self._people:
            policy = people.policy_in_force
            self._audit.tell(
                NodeAuditKind.PEOPLE_TAKEN,
                owner=0 if people.owner is None else people.owner.generation,
                owner_sha256="" if people.owner is None else hashlib.sha256(people.owner.public_key).hexdigest(),
                policy=0 if policy is None else policy.version,
                policy_sha256="" if policy is None else hashlib.sha256(policy.signed.statement).hexdigest(),
                roles=len(people.grants),
            )
        self._people, self._latest_signed_ms = people, latest_signed_ms

    def _judged(self, held: People, states: Sequence[TrustState]) -> tuple[People, int]:
        """What is held after `states`, and the latest time that people signed."""
        for state in states:
            said = trust_pb2.TrustBundleStatement.FromString(state.signed.statement)
            held, refused = rules.take(held, owners=said.owners, policy=said.policy, grants=said.role_grants)
            for error in refused if held.pin else ():
                log.warning("peoples_word_refused", reason=error.reason.value, detail=error.detail)
                self._audit.refuse(NodeAuditKind.PEOPLE_REFUSED, error.reason.value, detail=error.detail)
        now_ms = [self._server_time.now_ms(), self._clock.now_ms(), self._latest_signed_ms]
        issued = held.issued_at_ms()
        believed = rules.latest_ms(now_ms, issued)
        return held, max([self._latest_signed_ms, *[one for one in issued if one <= believed]])

    async def _save(self, people: People, latest_signed_ms: int) -> None:
        held = (people, latest_signed_ms)
        if held != self._saved:
            await asyncio.to_thread(write_private, self._path, _written(*held))
            self._saved = held


def load_people(path: Path, *, cluster_id: str, pin: bytes) -> tuple[People, int]:
    """What the file holds under `pin`, verified again, and the latest time of issue that was seen, Unix milliseconds.

    Raises:
        MembershipError: the file is damaged.
    """
    if not path.exists():
        return People(cluster_id, pin), 0
    try:
        found = json.loads(read_state(path))
        latest_signed_ms = int(found["latest_signed_ms"])
        kept = trust_pb2.TrustBundleStatement.FromString(base64.b64decode(found["statements"], validate=True))
        former, kept_pin = former_from_json(found.get("former")), bytes.fromhex(found["owner_pin"])
        if found["format"] != _FORMAT:
            raise ValueError
    except (ValueError, KeyError, TypeError, DecodeError) as error:
        raise MembershipError(
            f"{path} is damaged or of another version: restore it from a backup, or move it away, and the next trust "
            "bundle brings again what people signed; until then nothing is protected that only the policy names"
        ) from error
    people = rules.restore(cluster_id, kept_pin, kept, former)
    return people if kept_pin == pin else rules.repin(people, pin), latest_signed_ms


def _written(people: People, latest_signed_ms: int) -> bytes:
    statements = rules.kept_form(people).SerializeToString()
    content = {
        "format": _FORMAT,
        "owner_pin": people.pin.hex(),
        "latest_signed_ms": latest_signed_ms,
        "statements": base64.b64encode(statements).decode(),
        **({} if people.former is None else {"former": people.former.as_json()}),
    }
    return json.dumps(content, indent=2).encode()
