"""Use cases that change command keys: prepare, activate, retire, revoke, and the schedule that does the first three.

Each runs in one transaction under the cluster's lock: what `phases` decides is written under new row MACs, audited,
and published as the next trust bundle, or nothing of it happens. Two replicas that rotate at once take turns, and the
second one sees what the first one did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.spent import What
from fleet_server.database.engine import Connection
from fleet_server.database.writer import Transaction
from fleet_server.trust import phases, rollout, store
from fleet_server.trust.keyring import Keyring, TrustSetupError
from fleet_server.trust.phases import Change, KeyRecord
from fleet_server.trust.rollout import BundleHolding, Rollout, Version
from fleet_server.trust.secrets import SealError
from fleet_server.trust.service import TrustService

log = get_logger(__name__)

Holdings = Callable[[Connection, str, int], Sequence[tuple[Version, int, int, str]]]
"""`holdings(conn, site, seen_since_ms)`: which bundles the nodes of a site (empty: all) hold, each as the fields of a
`BundleHolding`; any thread."""

SCHEDULE_INTERVAL_S = 60.0
SCHEDULE = "schedule"
_KIND_OF = {
    phases.ACTIVE: AuditKind.KEY_ACTIVATED,
    phases.RETIRED: AuditKind.KEY_RETIRED,
    phases.REVOKED: AuditKind.KEY_REVOKED,
}


@dataclass(frozen=True, slots=True)
class KeyInUse:
    """A command key, and how many nodes hold a bundle with it: 0 once the newest bundle names it no more."""

    record: KeyRecord
    nodes: int


class KeyRotation:
    """Changes command keys.

    Args:
        trust: whose keys they are.
        holdings: what nodes hold, as the nodes room knows it.
        days: between two activations by the schedule; 0 for no schedule.
    """

    def __init__(self, trust: TrustService, holdings: Holdings, *, days: int) -> None:
        self._trust = trust
        self._database = trust.parts.database
        self._vault = trust.parts.vault
        self._clock = trust.parts.clock
        self._audit = trust.parts.audit
        self._holdings = holdings
        self._period_ms = days * phases.DAY_MS

    async def prepare(self, actor: str, site: str) -> KeyRecord:
        """Make the next key of a scope; nodes learn it, and nothing is signed with it yet.

        Args:
            site: empty for every site.

        Raises:
            Refusal: see `phases.check_prepare`.
        """

        def work(tx: Transaction, keyring: Keyring, next_version: Version) -> bytes:
            now_ms = self._clock.now_ms()
            phases.check_prepare(keyring.records, site, now_ms)
            return self._prepare(tx, actor, site, next_version, now_ms)

        return await self._changed(work)

    async def activate(self, actor: str, key: str, *, override: str = "") -> tuple[KeyRecord, Rollout[KeyRecord]]:
        """Sign with a PREPARED key from now on, and retire the one before it.

        Args:
            key: id in hexadecimal, or the beginning of it.
            override: why it may not wait until every node holds it; empty when it may.

        Raises:
            Refusal: see `phases.activate` and `rollout.check_complete`.
        """
        if override:
            phases.checked_reason(override)
        measured: list[Rollout[KeyRecord]] = []

        def work(tx: Transaction, keyring: Keyring, _: Version) -> bytes:
            record = phases.find(keyring.records, key)
            changes = phases.activate(keyring.records, record, now_ms=self._clock.now_ms())
            far = self._measure(tx.conn, record)
            if not override:
                rollout.check_complete(far)
            measured[:] = [far]
            detail: dict[str, JSON] = {"asked": far.asked, "holding": far.holding}
            self._apply(tx, actor, keyring, changes, detail | ({"override": override} if override else {}))
            return record.key_id

        return await self._changed(work), measured[0]

    async def retire(self, actor: str, key: str, *, verify_for_ms: int) -> KeyRecord:
        """Let a key sign nothing new, and verify for a while; see `phases.retire`.

        Args:
            verify_for_ms: milliseconds from now; 0 for a day.

        Raises:
            Refusal: see `phases.retire`.
        """

        def work(tx: Transaction, keyring: Keyring, _: Version) -> bytes:
            record = phases.find(keyring.records, key)
            until_ms = verify_for_ms or phases.VERIFY_FOR_MS
            changes = phases.retire(keyring.records, record, now_ms=self._clock.now_ms(), verify_for_ms=until_ms)
            self._apply(tx, actor, keyring, changes, {})
            return record.key_id

        return await self._changed(work)

    async def revoke(self, actor: str, key: str, *, reason: str, stop_commands: bool) -> KeyRecord:
        """Let a key verify nothing any more, at once; see `phases.revoke`.

        Raises:
            Refusal: see `phases.revoke`.
        """
        phases.checked_reason(reason)

        def work(tx: Transaction, keyring: Keyring, _: Version) -> bytes:
            record = phases.find(keyring.records, key)
            changes = phases.revoke(keyring.records, record, stop_commands=stop_commands)
            self._apply(tx, actor, keyring, changes, {"reason": reason, "stop_commands": stop_commands})
            return record.key_id

        return await self._changed(work)

    async def rollouts(self) -> list[Rollout[KeyRecord]]:
        """How far each PREPARED key has come."""
        prepared = [record for record in self._records() if record.key.phase == phases.PREPARED]
        return await self._database.read(lambda conn: [self._measure(conn, record) for record in prepared])

    async def in_use(self) -> list[KeyInUse]:
        """Every command key with the number of nodes that hold it, oldest first."""
        records = self._records()
        held_now = self._trust.bundle.command_keys

        def query(conn: Connection) -> list[KeyInUse]:
            published, holdings = self._held(conn, "", 0)
            return [
                KeyInUse(record, _holders(record, published, holdings) if record.key_id in held_now else 0)
                for record in records
            ]

        return await self._database.read(query)

    # -- the schedule -----------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Rotate by the schedule until cancelled; without one nothing is done."""
        while True:
            await self._clock.sleep(SCHEDULE_INTERVAL_S)
            try:
                await self.rotate_due()
            except Refusal as refusal:
                log.warning("key_rotation_waits", reason=str(refusal.reason), detail=refusal.detail)
            except (SealError, TrustSetupError) as error:
                log.error("key_rotation_waits", detail=str(error))

    async def rotate_due(self) -> None:
        """Do what the schedule asks for now. A key that nodes lack is left PREPARED, and the log says how many."""
        if self._period_ms and self._due(self._records()):
            await self._trust.change_keys(self._rotate)

    def _due(self, records: Sequence[KeyRecord]) -> list[phases.Due]:
        return phases.due(records, now_ms=self._clock.now_ms(), period_ms=self._period_ms)

    def _rotate(self, tx: Transaction, keyring: Keyring, next_version: Version) -> None:
        now_ms = self._clock.now_ms()
        for step in self._due(keyring.records):
            try:
                self._take_step(tx, keyring, step, next_version, now_ms)
            except Refusal as refusal:  # another scope's step is not held up
                log.warning("key_rotation_waits", reason=str(refusal.reason), detail=refusal.detail)

    def _take_step(
        self, tx: Transaction, keyring: Keyring, step: phases.Due, next_version: Version, now_ms: int
    ) -> None:
        if step.activate is None:
            phases.check_prepare(keyring.records, step.site, now_ms)
            self._prepare(tx, SCHEDULE, step.site, next_version, now_ms)
            return
        changes = phases.activate(keyring.records, step.activate, now_ms=now_ms)
        far = self._measure(tx.conn, step.activate)
        rollout.check_complete(far)
        detail: Mapping[str, JSON] = {
            "schedule_days": self._period_ms // phases.DAY_MS,
            "asked": far.asked,
            "holding": far.holding,
        }
        self._apply(tx, SCHEDULE, keyring, changes, detail)

    # -- inside -----------------------------------------------------------------------------------------------------
    async def _changed(self, work: Callable[[Transaction, Keyring, Version], bytes]) -> KeyRecord:
        key_id = await self._trust.change_keys(work)
        return next(record for record in self._records() if record.key_id == key_id)

    def _prepare(self, tx: Transaction, actor: str, site: str, next_version: Version, now_ms: int) -> bytes:
        row = self._vault.new_command_key(
            self._trust.cluster_id, site=site, phase=phases.PREPARED, now_ms=now_ms, first_bundle=next_version
        )
        store.insert_key(tx.conn, row)
        detail: Mapping[str, JSON] = {"site": site, "bundle": list(next_version)}
        self._audit.append(tx, AuditKind.KEY_PREPARED, actor=actor, subject=row.key_id.hex(), detail=detail)
        return row.key_id

    def _apply(
        self, tx: Transaction, actor: str, keyring: Keyring, changes: Sequence[Change], detail: Mapping[str, JSON]
    ) -> None:
        now_ms = self._clock.now_ms()
        for change in changes:  # first, for it may refuse, and then nothing is to be written
            if change.phase == phases.REVOKED:
                self._audit.spent.add(tx.conn, What.COMMAND_KEY, change.record.key_id.hex())
        for change in changes:
            record = change.record
            store.save_key(tx.conn, self._vault.in_phase(keyring.command_keys[record.key_id].row, change, now_ms))
            said: dict[str, JSON] = {"site": record.key.site, "verify_until_ms": change.verify_until_ms, **detail}
            self._audit.append(tx, _KIND_OF[change.phase], actor=actor, subject=record.key_id.hex(), detail=said)

    def _measure(self, conn: Connection, record: KeyRecord) -> Rollout[KeyRecord]:
        published, holdings = self._held(conn, record.key.site, self._clock.now_ms() - rollout.SEEN_LATELY_MS)
        return rollout.measure(record, published, holdings)

    def _held(self, conn: Connection, site: str, seen_since_ms: int) -> tuple[list[Version], list[BundleHolding]]:
        """What nodes hold, and which of it this cluster published."""
        holdings = [BundleHolding(*held) for held in self._holdings(conn, site, seen_since_ms)]
        return store.published(conn, self._trust.cluster_id, [held.version for held in holdings]), holdings

    def _records(self) -> tuple[KeyRecord, ...]:
        return self._trust.command_keys()


def _holders(record: KeyRecord, published: Sequence[Version], holdings: Sequence[BundleHolding]) -> int:
    carry = rollout.carriers(record, published)
    return sum(held.nodes for held in holdings if held.version in carry)
