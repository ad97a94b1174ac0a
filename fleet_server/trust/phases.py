"""The life of a command key: which step is allowed from where, and when the schedule takes one. Pure.

PREPARED -> ACTIVE -> RETIRED, and REVOKED from anywhere; nothing ever goes back. One key a scope (a site, or all of
them) is ACTIVE at most, and one PREPARED. A step answers the changes that it makes, or a refusal that says what to do
(docs/protocol.md, "Command keys").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet.errors import Reason, Refusal
from fleet.trust import BUNDLE_GRACE_S, BUNDLE_LIFETIME_MS, MAX_COMMAND_KEYS, CommandKey
from fleet.v1 import trust_pb2

PREPARED = trust_pb2.KEY_PHASE_PREPARED
ACTIVE = trust_pb2.KEY_PHASE_ACTIVE
RETIRED = trust_pb2.KEY_PHASE_RETIRED
REVOKED = trust_pb2.KEY_PHASE_REVOKED

DAY_MS = 24 * 3600 * 1000
VERIFY_FOR_MS = DAY_MS
"""How long a key that another took over from still verifies."""
MAX_VERIFY_FOR_MS = 30 * DAY_MS
LEAST_PREPARED_MS = DAY_MS
"""How long the schedule leaves a key PREPARED, so that nodes that are away for a night learn it too."""
SKEW_MS = 5 * 60 * 1000
"""How long before it was made a key is valid already: a node's idea of server time lags behind a replica's clock."""
REVOKED_SHOWN_MS = BUNDLE_LIFETIME_MS + BUNDLE_GRACE_S * 1000
"""How long bundles name a revoked key: after that no bundle verifies anything that certified it as good."""
MIN_PREFIX_CHARS = 8
MAX_REASON_CHARS = 500
_SITE = re.compile(r"[a-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A command key of the cluster.

    Args:
        since_ms: when it came into its phase, Unix milliseconds.
        first_bundle: (generation, number) of the first bundle that certifies it.
    """

    key_id: bytes
    key: CommandKey
    created_at_ms: int
    since_ms: int
    first_bundle: tuple[int, int]

    @property
    def scope(self) -> str:
        """In words."""
        return f"site {self.key.site}" if self.key.site else "every site"


@dataclass(frozen=True, slots=True)
class Change:
    """A key comes into another phase."""

    record: KeyRecord
    phase: trust_pb2.KeyPhase.ValueType
    verify_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class Due:
    """What the schedule does next for a scope: activate a key that is PREPARED, or prepare one when it is None."""

    site: str
    activate: KeyRecord | None


def find(records: Iterable[KeyRecord], ref: str) -> KeyRecord:
    """The key that a person means: its id in hexadecimal, or the beginning of it.

    Raises:
        Refusal: NOT_FOUND, or INVALID_ARGUMENT when it is too short or begins several.
    """
    wanted = ref.strip().lower()
    if len(wanted) < MIN_PREFIX_CHARS:
        raise Refusal(
            Reason.INVALID_ARGUMENT,
            f"write at least {MIN_PREFIX_CHARS} digits of the key's id: see `fleetctl keys list`",
        )
    found = [record for record in records if record.key_id.hex().startswith(wanted)]
    if not found:
        raise Refusal(Reason.NOT_FOUND, f"no command key is called {ref[:40]!r}: see `fleetctl keys list`")
    if len(found) > 1:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{len(found)} command keys begin with {ref[:40]!r}: write more of it")
    return found[0]


def certified(records: Iterable[KeyRecord], now_ms: int) -> list[CommandKey]:
    """Keys that stand in a bundle of now: not those that verify nothing any more, but for what was revoked lately, so
    that nodes say why they refuse it."""
    return [record.key for record in records if _stands(record, now_ms)]


def check_prepare(records: Sequence[KeyRecord], site: str, now_ms: int) -> None:
    """Whether another key may be prepared for `site`; empty means every site.

    Raises:
        Refusal: INVALID_ARGUMENT, or CONFLICT: one waits already, or the bundle is full.
    """
    if not _SITE.fullmatch(site):
        raise Refusal(Reason.INVALID_ARGUMENT, f"{site[:80]!r} is no site: use at most 63 characters of a-z, 0-9 and -")
    waiting = _of(records, site, PREPARED)
    if waiting is not None:
        raise Refusal(
            Reason.CONFLICT,
            f"{name(waiting)} is PREPARED for {waiting.scope} already: activate it, or revoke it and prepare another",
        )
    if len(certified(records, now_ms)) >= MAX_COMMAND_KEYS:
        raise Refusal(
            Reason.CONFLICT,
            f"the trust bundle holds {MAX_COMMAND_KEYS} command keys already: wait until a retired one has ended, or"
            " retire the keys of sites that need none of their own",
        )


def activate(records: Sequence[KeyRecord], record: KeyRecord, *, now_ms: int) -> list[Change]:
    """The PREPARED key signs from now on; the one that was ACTIVE for its scope is retired and verifies for a day.

    Raises:
        Refusal: CONFLICT from any other phase.
    """
    phase = record.key.phase
    if phase == ACTIVE:
        raise _conflict(record, "is ACTIVE already: it signs new commands")
    if phase != PREPARED:
        raise _conflict(record, "never signs again: prepare a new one with `fleetctl keys prepare`")
    changes = [Change(record, ACTIVE)]
    before = _of(records, record.key.site, ACTIVE)
    if before is not None:
        changes.append(Change(before, RETIRED, now_ms + VERIFY_FOR_MS))
    return changes


def retire(records: Sequence[KeyRecord], record: KeyRecord, *, now_ms: int, verify_for_ms: int) -> list[Change]:
    """A site's own ACTIVE key gives way to the cluster's; or a retired key ends sooner.

    Raises:
        Refusal: INVALID_ARGUMENT for `verify_for_ms`; CONFLICT from any other phase, when nothing would sign in its
            place, or when it would end later than nodes were told.
    """
    if not 0 < verify_for_ms <= MAX_VERIFY_FOR_MS:
        raise Refusal(Reason.INVALID_ARGUMENT, "a retired key verifies for at most 30 days: choose a shorter time")
    until_ms = now_ms + verify_for_ms
    phase = record.key.phase
    if phase == PREPARED:
        raise _conflict(record, "has never signed: activate it, or take it back with `fleetctl keys revoke`")
    if phase == REVOKED:
        raise _conflict(record, "is revoked: it verifies nothing, and there is nothing to retire")
    if phase == ACTIVE and _stand_in(records, record) is None:
        raise _conflict(
            record,
            "is the only one that signs for its nodes: prepare and activate another, and it is retired with that",
        )
    if phase == RETIRED and until_ms > record.key.verify_until_ms:
        raise _conflict(record, "ends before that: the end of a retired key only comes nearer")
    return [Change(record, RETIRED, until_ms)]


def revoke(records: Sequence[KeyRecord], record: KeyRecord, *, stop_commands: bool) -> list[Change]:
    """The key verifies nothing from now on. The PREPARED key of its scope, if there is one, takes its place at once.

    Args:
        stop_commands: nothing takes its place, and commands of its scope may wait until a key is activated.

    Raises:
        Refusal: CONFLICT when it is revoked already, or nothing would sign in its place.
    """
    if record.key.phase == REVOKED:
        raise _conflict(record, "is revoked already")
    changes = [Change(record, REVOKED, record.key.verify_until_ms)]
    if record.key.phase != ACTIVE or stop_commands:
        return changes
    successor = _of(records, record.key.site, PREPARED)
    if successor is not None:
        return [*changes, Change(successor, ACTIVE)]
    if _stand_in(records, record) is None:
        raise _conflict(
            record,
            "is the only one that signs for its nodes: `fleetctl keys prepare` makes the one that takes its place, or"
            " revoke it with --stop-commands, and commands wait until a key is activated",
        )
    return changes


def due(records: Sequence[KeyRecord], *, now_ms: int, period_ms: int) -> list[Due]:
    """What a schedule of `period_ms` between activations asks for now, at most one step a scope."""
    steps: list[Due] = []
    for record in records:
        if record.key.phase != ACTIVE:
            continue
        successor = _of(records, record.key.site, PREPARED)
        age_ms = now_ms - record.since_ms
        if successor is None and age_ms >= period_ms - LEAST_PREPARED_MS:
            steps.append(Due(record.key.site, None))
        elif successor is not None and age_ms >= period_ms and now_ms - successor.since_ms >= LEAST_PREPARED_MS:
            steps.append(Due(record.key.site, successor))
    return steps


def steps_back(now: CommandKey, before: CommandKey) -> bool:
    """Whether a key is worth more than it was: an old row, its MAC still good, was put back around the server."""
    if now.phase == REVOKED:
        return False
    if now.phase < before.phase or (now.public_key, now.site) != (before.public_key, before.site):
        return True
    ends = before.verify_until_ms
    return bool(ends) and (not now.verify_until_ms or now.verify_until_ms > ends)


def checked_reason(reason: str) -> str:
    """A reason that stands in the audit.

    Raises:
        Refusal: INVALID_ARGUMENT when there is none, or it is too long.
    """
    if not reason.strip() or len(reason) > MAX_REASON_CHARS:
        raise Refusal(Reason.INVALID_ARGUMENT, f"say why, in at most {MAX_REASON_CHARS} characters: it is audited")
    return reason


def name(record: KeyRecord) -> str:
    """As a sentence names it."""
    return f"command key {record.key_id.hex()[:MIN_PREFIX_CHARS]}"


def _stands(record: KeyRecord, now_ms: int) -> bool:
    if record.key.phase == REVOKED:
        return now_ms < record.since_ms + REVOKED_SHOWN_MS
    return not record.key.verify_until_ms or now_ms < record.key.verify_until_ms


def _of(records: Iterable[KeyRecord], site: str, phase: int) -> KeyRecord | None:
    found = [record for record in records if record.key.site == site and record.key.phase == phase]
    return max(found, key=lambda record: (record.since_ms, record.key_id), default=None)


def _stand_in(records: Iterable[KeyRecord], record: KeyRecord) -> KeyRecord | None:
    """The cluster's key, which signs for a site that has none of its own."""
    return _of(records, "", ACTIVE) if record.key.site else None


def _conflict(record: KeyRecord, what: str) -> Refusal:
    return Refusal(Reason.CONFLICT, f"{name(record)} {what}")
