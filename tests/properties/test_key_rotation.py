"""Whatever is done to command keys, in whatever order: at most one a scope signs, nodes verify what is in flight, and
nothing revoked verifies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from fleet import command_trust
from fleet.envelope import key_id
from fleet.errors import Refusal
from fleet.sequence import StatementReason, StatementRefusal
from fleet.trust import CommandKey, TrustState
from fleet.v1 import trust_pb2
from fleet_server.trust import phases, rollout, rules
from fleet_server.trust.phases import ACTIVE, DAY_MS, PREPARED, RETIRED, REVOKED, Change, KeyRecord
from fleet_server.trust.rollout import BundleHolding

SITES = ("", "berlin", "paris")
BEGAN = 1_900_000_000_000
BUNDLES = 1000 * DAY_MS  # long-lived here: their own end is another property's


@dataclass
class Fleet:
    """The server's keys and bundles, and a node of each site that takes bundles when it comes to it."""

    now_ms: int = BEGAN
    records: dict[bytes, KeyRecord] = field(default_factory=dict)
    bundles: list[TrustState] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SITES, 0))
    forced: set[bytes] = field(default_factory=set)
    in_flight: list[tuple[bytes, str]] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        self._add(ACTIVE, "")
        self._publish()

    # -- what the server does ---------------------------------------------------------------------------------------
    def prepare(self, pick: int) -> None:
        phases.check_prepare(self._all(), SITES[pick % 3], self.now_ms)
        self._add(PREPARED, SITES[pick % 3])

    def activate(self, pick: int) -> None:
        record = self._picked(pick, PREPARED)
        changes = phases.activate(self._all(), record, now_ms=self.now_ms)
        held = [self.held[site] for site in SITES if record.key.site in ("", site)]
        published = [state.version for state in self.bundles]
        holdings = [BundleHolding(self.bundles[index].version, 1, 1, "n") for index in held]
        rollout.check_complete(rollout.measure(record, published, holdings))
        self._apply(changes)

    def retire(self, pick: int) -> None:
        record = self._picked(pick)
        self._apply(phases.retire(self._all(), record, now_ms=self.now_ms, verify_for_ms=1 + pick * 3600_000))

    def revoke(self, pick: int) -> None:
        changes = phases.revoke(self._all(), self._picked(pick), stop_commands=pick % 5 == 0)
        self.forced |= {change.record.key_id for change in changes if change.phase == ACTIVE}
        self._apply(changes)

    # -- what time and nodes do -------------------------------------------------------------------------------------
    def wait(self, pick: int) -> None:
        self.now_ms += pick * 7 * 3600_000

    def take(self, pick: int) -> None:
        for site in SITES if pick % 2 else SITES[pick % 3 : pick % 3 + 1]:
            self.held[site] = len(self.bundles) - 1

    def sign(self, pick: int) -> None:
        site = SITES[pick % 3]
        signer = self.signer(site)
        if signer is not None:
            self.in_flight.append((signer, site))

    def signer(self, site: str) -> bytes | None:
        keys = ((each.key_id, each.key) for each in self._all())
        return rules.signing_key_id(keys, site=site, now_ms=self.now_ms)

    def verifies(self, state: TrustState, signer: bytes, site: str) -> StatementReason | None:
        try:
            command_trust.command_signer(state, signer, site=site, now_ms=self.now_ms)
        except StatementRefusal as refusal:
            return refusal.reason
        return None

    # -- inside -----------------------------------------------------------------------------------------------------
    def _all(self) -> list[KeyRecord]:
        return list(self.records.values())

    def _picked(self, pick: int, likely: int = 0) -> KeyRecord:
        """Any key; mostly one in the phase that lets the step succeed, or few sequences would get anywhere."""
        fitting = [each for each in self._all() if each.key.phase == likely and pick % 4]
        return (fitting or self._all())[pick % len(fitting or self.records)]

    def _add(self, phase: trust_pb2.KeyPhase.ValueType, site: str) -> None:
        self.made += 1
        public_key = self.made.to_bytes(32, "big")
        key = CommandKey(public_key, site, self.now_ms - phases.SKEW_MS, 0, phase)
        first = (1, len(self.bundles) + 1)
        record = KeyRecord(key_id(public_key), key, self.now_ms, self.now_ms, first)
        self.records[record.key_id] = record

    def _apply(self, changes: list[Change]) -> None:
        for change in changes:
            old = change.record
            key = replace(old.key, phase=change.phase, verify_until_ms=change.verify_until_ms)
            since_ms = old.since_ms if change.phase == old.key.phase else self.now_ms
            self.records[old.key_id] = replace(old, key=key, since_ms=since_ms)
            assert not phases.steps_back(key, old.key)

    def _publish(self) -> None:
        named: Mapping[bytes, CommandKey] = {
            key_id(key.public_key): key for key in phases.certified(self._all(), self.now_ms)
        }
        if not self.bundles or named != self.bundles[-1].command_keys:
            number, ends = len(self.bundles) + 1, BEGAN + BUNDLES
            signed = trust_pb2.Signed()
            self.bundles.append(TrustState("c", 1, number, b"a", named, (), (), BEGAN, ends, 0, signed))

    def step(self, act: Callable[["Fleet", int], None], pick: int) -> None:
        before = dict(self.records)
        try:
            act(self, pick)
        except Refusal:
            assert self.records == before, "what is refused changes nothing"
        self._publish()


ACTS = (Fleet.prepare, Fleet.take, Fleet.activate, Fleet.sign, Fleet.retire, Fleet.revoke, Fleet.wait)


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 29)), max_size=60))
def test_whatever_is_done_one_key_signs_and_nodes_verify_it(
    acts: list[tuple[Callable[[Fleet, int], None], int]],
) -> None:
    fleet = Fleet()
    for act, pick in acts:
        fleet.step(act, pick)
        newest = fleet.bundles[-1]
        for site in SITES:
            for phase in (ACTIVE, PREPARED):
                keys = [each for each in fleet.records.values() if (each.key.site, each.key.phase) == (site, phase)]
                assert len(keys) <= 1
            signer = fleet.signer(site)
            if signer is None:
                continue
            assert fleet.verifies(newest, signer, site) is None
            if signer not in fleet.forced:
                held = fleet.bundles[fleet.held[site]]
                assert fleet.verifies(held, signer, site) is None, "a node knows the key before it signs"
        for signer, site in fleet.in_flight:
            record = fleet.records[signer]
            for state in fleet.bundles:
                verdict = fleet.verifies(state, signer, site)
                if record.key.phase == REVOKED and state is newest:
                    assert verdict in (StatementReason.KEY_REVOKED, StatementReason.UNKNOWN_KEY)
                elif record.key.phase == ACTIVE or (
                    record.key.phase == RETIRED and fleet.now_ms < record.key.verify_until_ms
                ):
                    knows = state.version >= record.first_bundle
                    assert (verdict is None) is knows, "in flight, and lost for a node that holds this bundle"


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 29)), max_size=60))
def test_no_phase_is_ever_left_backwards(acts: list[tuple[Callable[[Fleet, int], None], int]]) -> None:
    fleet = Fleet()
    for act, pick in acts:
        before = dict(fleet.records)
        fleet.step(act, pick)
        for known, record in before.items():
            assert fleet.records[known].key.phase >= record.key.phase
