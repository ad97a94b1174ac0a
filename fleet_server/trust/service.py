"""The cluster's trust: its authority, its command keys, and the bundle that nodes hold.

Mental model
    What is signed with is kept in memory, opened; the database holds it sealed. Everything that changes keys or
    bundles first locks the authority's row, so replicas take turns and numbers never collide, and reads keys and
    newest bundle again under that lock: no replica publishes what it remembers. What was committed is adopted in one
    step, keys and bundle together. Twice a second a replica looks whether another one published a bundle: every change
    of a key makes one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fleet.clock import Clock
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.trust import TrustState
from fleet.v1 import trust_pb2
from fleet_server.audit.service import AuditService
from fleet_server.certificates import ServedTls
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.trust import bundles, rules, store
from fleet_server.trust.bundles import BundlePress, Offer, Published
from fleet_server.trust.clusters import create_cluster
from fleet_server.trust.endpoints import EndpointBoard
from fleet_server.trust.keyring import Keyring, TrustSetupError
from fleet_server.trust.keys import HeldCommandKey, KeyVault
from fleet_server.trust.parts import TrustParts
from fleet_server.trust.people import ClusterPeople
from fleet_server.trust.phases import KeyRecord
from fleet_server.trust.reading import number_to_pass, read_trust
from fleet_server.trust.secrets import SealError, Secrets
from fleet_server.trust.tls_keys import TlsRing, TlsVault
from fleet_server.trust.watch import BundleWatch

__all__ = ["TrustService", "TrustSetupError"]

log = get_logger(__name__)

T = TypeVar("T")
TOPIC = "bundle"
CHECK_INTERVAL_S = 60.0
MAX_NUMBER_RAISE = 64  # an hour: the 2^20 that a node follows at once last two years, also against one in wrong hands
RAISE_INTERVAL_S = 3600.0


class TrustService:
    """Keys and bundles of one cluster.

    Args:
        database: where they rest.
        secrets: what opens them.
        clock: for statements and renewal.
        audit: told of every key event.
        wakeup: wakes ``bundle`` when there is a newer one.
        cluster_name: which cluster this server serves.
    """

    def __init__(
        self,
        *,
        database: Database,
        secrets: Secrets,
        clock: Clock,
        audit: AuditService,
        wakeup: Wakeup,
        cluster_name: str,
    ) -> None:
        self._database = database
        self._vault = KeyVault(secrets)
        self._cluster_mac = secrets.row_mac("clusters")
        self.parts = TrustParts(database, self._vault, clock, audit, TlsVault(secrets))
        self._clock = clock
        self._audit = audit
        self._wakeup = wakeup
        self.cluster_name = cluster_name
        self.cluster_id = ""
        self.installation_id = ""
        self.people = ClusterPeople(
            database=database,
            secrets=secrets,
            clock=clock,
            audit=audit,
            bundle=lambda: self.bundle,
            publish=self._refresh,
        )
        self._keyring: Keyring | None = None
        self._active_keys: dict[bytes, HeldCommandKey] = {}
        self._bundle: TrustState | None = None
        self.offer: Offer | None = None
        self.press = BundlePress(
            audit, self.people.kept_for_bundle, EndpointBoard(secrets.row_mac("gateway_endpoints"))
        )
        self._serve_tls: Callable[[ServedTls], None] = lambda served: None
        self._told_refused: set[str] = set()
        self._raised_at: float | None = None
        self.watch = BundleWatch(
            clock=clock,
            newest=lambda: database.read(lambda conn: store.newest_version(conn, self.cluster_id)),
            known=lambda: self._bundle.version if self._bundle is not None else None,
            take_up=lambda: _or_say(self._take_up()),
        )

    async def create_cluster(self) -> str:
        """Make the cluster on a new installation and answer its id; the one that is there already otherwise.

        Raises:
            TrustSetupError: the database holds a cluster of another name.
        """
        now_ms = self._clock.now_ms()
        self.cluster_id = await self._database.write(
            lambda tx: create_cluster(tx, self._audit, self._cluster_mac, self.cluster_name, now_ms)
        )
        return self.cluster_id

    async def load(self) -> None:
        """Load the cluster's keys; make the authority and the first command key when there are none, once for all
        replicas.

        Raises:
            TrustSetupError: no such cluster, or its keys were changed or sealed under another secret encryption key.
            Refusal: the database is away.
        """
        cluster = await self._database.read(lambda conn: store.cluster(conn, self.cluster_name))
        if cluster is None:
            raise TrustSetupError(
                f"there is no cluster {self.cluster_name!r} in this database: run `fleet-server init`"
            )
        self.cluster_id, self.installation_id = cluster.cluster_id, cluster.installation_id
        try:
            keyring, newest = await self._database.write(self._read)
        except SealError as error:
            raise TrustSetupError(str(error)) from error
        if not self._cluster_mac.verify(cluster.mac, *cluster.authority_fields()):
            raise TrustSetupError(
                f"the row of cluster {self.cluster_name!r} was changed around the server: restore the table clusters"
                " from a backup"
            )
        self._adopt(keyring, newest.state if newest is not None else None)
        if any(record.key.phase == trust_pb2.KEY_PHASE_ACTIVE for record in keyring.records):
            return
        if keyring.refused or not keyring.command_keys:
            raise TrustSetupError(
                f"no active command key verifies; changed around the server: {', '.join(keyring.refused) or 'none'}."
                " Restore the table command_keys from a backup"
            )
        log.error("no_active_command_key", next="commands wait until `fleetctl keys activate`")

    @property
    def authority(self) -> Signer:
        """Signs join tokens, bootstraps, handshake answers, bundles, certificates and checkpoints."""
        return self._known.authority

    @property
    def authority_generation(self) -> int:
        """Generation of the authority, from 1."""
        return self._known.generation

    @property
    def bundle(self) -> TrustState:
        """The newest bundle that this replica knows.

        Raises:
            Refusal: none was published yet.
        """
        if self._bundle is None:
            raise Refusal(Reason.UNAVAILABLE, "the server has published no trust bundle yet: try again in a moment")
        return self._bundle

    def sign_checkpoint(self, conn: Connection, statement: bytes) -> trust_pb2.Signed | None:
        """Sign an audit checkpoint with the authority; None when another one followed it and is not known here yet,
        for no authority signs a checkpoint after its successor did."""
        known, newest = self._known, store.authority(conn, self.cluster_id)
        if newest is None or newest.generation != known.generation:
            return None
        return known.authority.sign(Domain.AUDIT_CHECKPOINT, statement)

    def sign_floor(self, node_id: str, *, seq_floor: int, intents_after_ms: int, audit_chain: int) -> trust_pb2.Signed:
        """Sign what lies behind a node that started over, and the audit chain that it writes, with the authority."""
        statement = trust_pb2.FloorStatement(
            cluster_id=self.cluster_id,
            node_id=node_id,
            seq_floor=seq_floor,
            intents_after_ms=intents_after_ms,
            issued_at_ms=self._clock.now_ms(),
            audit_chain=audit_chain,
        )
        return self.authority.sign(Domain.FLOOR, statement.SerializeToString())

    def sign_command_statement(self, domain: Domain, statement: bytes, *, site: str) -> trust_pb2.Signed:
        """Sign commands or a cancel for a node of `site` with the active command key.

        Raises:
            ValueError: another domain: a command key signs nothing else.
            Refusal: no command key may sign for that site now.
        """
        if domain not in (Domain.COMMAND, Domain.CANCEL):
            raise ValueError(f"a command key signs no {domain}")
        return self._active(site).signer.sign(domain, statement)

    def command_key_id(self, site: str) -> bytes:
        """Id of the key that signs commands for nodes of `site` now.

        Raises:
            Refusal: there is none.
        """
        return self._active(site).signer.key_id

    def bundle_chain_from(self, generation: int, number: int) -> list[trust_pb2.Signed]:
        """What leads a node that holds that version to the newest: one bundle a generation step, then the newest."""
        return bundles.chain_after((generation, number), self._known.steps, self.bundle)

    async def fresh_chain(self, cluster_id: str, generation: int, number: int) -> list[trust_pb2.Signed]:
        """As `bundle_chain_from`, for a stranger, after a look whether another replica published.

        Raises:
            Refusal: WRONG_CLUSTER.
        """
        if cluster_id != self.cluster_id:
            raise Refusal(Reason.WRONG_CLUSTER, "this server does not serve that cluster: check the endpoint")
        await self.watch.look()
        return self.bundle_chain_from(generation, number)

    async def publish_bundle(self, endpoints: Sequence[str], *, as_replica: bool = True) -> None:
        """Say what the bundle shall offer, and publish a new number when that differs or half of the newest's life is
        over.

        Args:
            endpoints: gateway endpoints that nodes may use, ``host:port``, preferred first; those of other replicas
                are offered as well.
            as_replica: whether this process goes on serving; the endpoints of one that does not count only while
                there are no others.
        """
        self.offer = Offer(tuple(endpoints), self._audit.writer if as_replica else "")
        await self._refresh()

    def serve_tls_with(self, take: Callable[[ServedTls], None]) -> None:
        """Tell `take` what the listeners are to show, whenever that changes here or at another replica."""
        self._serve_tls = take

    async def note_held_bundle(self, generation: int, number: int) -> None:
        """A node shows a bundle version. One newer than any here means a restored database: the number is raised
        above it.

        Raised by at most `MAX_NUMBER_RAISE` an hour, for one node in wrong hands must not fast-forward the others
        away.
        """
        now = self._clock.monotonic()
        if (generation, number) <= self.bundle.version:
            return
        await self._take_up()  # another replica may have published it a moment ago
        newest = self.bundle
        if (generation, number) <= newest.version:
            return
        log.error("node_holds_newer_bundle", generation=generation, number=number, newest=newest.number)
        due = self._raised_at is None or now - self._raised_at >= RAISE_INTERVAL_S
        above = rules.number_to_pass(newest, generation, number, max_step=MAX_NUMBER_RAISE)
        if not due or above is None or self.offer is None:
            return
        self._raised_at = now
        held = (generation, number)
        await self.change_keys(lambda tx, *_: self.press.tell_behind(tx, self.cluster_id, held, newest), above=above)

    async def change_keys(self, change: Callable[[Transaction, Keyring, tuple[int, int]], T], *, above: int = 0) -> T:
        """Change keys under the cluster's lock, and publish what nodes have to know of it in the same transaction.

        Args:
            change: refuses, or writes rows; it is given the keyring as it stands and the version of the bundle that
                would be next.
            above: the next bundle's number has to pass this one.

        Raises:
            Refusal: what `change` refused; UNAVAILABLE before the first bundle, or when the database is away.
            SealError, TrustSetupError: rows of authority or bundles do not verify; nothing was changed.
        """
        offer = self.offer
        if offer is None:
            raise Refusal(Reason.UNAVAILABLE, "the server has published no trust bundle yet: try again in a moment")

        def work(tx: Transaction) -> T | Refusal:
            keyring, newest = self._read(tx)
            passed = number_to_pass(self._bundle, keyring, newest, above)
            number = max(newest.state.number if newest is not None else 0, passed) + 1
            try:
                result = change(tx, keyring, (keyring.generation, number))
            except Refusal as refusal:  # raised from here it would roll back the whole group
                return refusal
            keyring, newest = self._read(tx, keyring)
            now_ms, passed = self._clock.now_ms(), number_to_pass(self._bundle, keyring, newest, above)
            bundle = self.press.renew(tx, self.cluster_id, keyring, newest, offer, now_ms=now_ms, above=passed)
            tx.first_after_commit(lambda: self._adopt(keyring, bundle))  # before any command of this commit is signed
            return result

        changed = await self._database.write(work)
        if isinstance(changed, Refusal):
            raise changed
        return changed

    async def run(self) -> None:
        """Keep keys and bundle fresh, here and across replicas, until cancelled."""
        while True:
            await self._clock.sleep(CHECK_INTERVAL_S)
            await _or_say(self._refresh())

    def command_keys(self) -> tuple[KeyRecord, ...]:
        """Every command key of the cluster, oldest first."""
        return tuple(self._known.records)

    @property
    def tls(self) -> TlsRing:
        """The server's TLS."""
        return self._known.tls

    @property
    def _known(self) -> Keyring:
        if self._keyring is None:
            raise RuntimeError("TrustService.load() has not run")
        return self._keyring

    def _active(self, site: str) -> HeldCommandKey:
        keys = self._active_keys
        now_ms = self._clock.now_ms()
        key_id = rules.signing_key_id(((key_id, held.key) for key_id, held in keys.items()), site=site, now_ms=now_ms)
        if key_id is None:
            raise Refusal(
                Reason.UNAVAILABLE, f"no active command key may sign for site {site!r}: see `fleetctl keys list`"
            )
        return keys[key_id]

    def _read(self, tx: Transaction, earlier: Keyring | None = None) -> tuple[Keyring, Published | None]:
        """Keys and newest bundle as they are in the database, under the cluster's lock.

        Args:
            earlier: what this transaction read before: it has audited what it refused.
        """
        told = self._told_refused
        return read_trust(tx, self.parts, self.cluster_id, known=self._keyring, told=told, earlier=earlier)

    async def _refresh(self, above: int = 0) -> None:
        """Take what another replica changed; publish when it is due, or when the number has to pass `above`."""
        if self.offer is not None:
            await self.change_keys(lambda *_: None, above=above)

    async def _take_up(self) -> None:
        """Take what another replica changed, and publish nothing: replicas whose settings differ would answer each
        other without end."""

        def work(tx: Transaction) -> bool:
            keyring, newest = self._read(tx)
            tx.first_after_commit(lambda: self._adopt(keyring, newest.state if newest is not None else None))
            return number_to_pass(self._bundle, keyring, newest, 0) > 0

        if await self._database.write(work):
            await self._refresh()  # a bundle that this replica knows was taken out around the server

    def _adopt(self, keyring: Keyring, bundle: TrustState | None) -> None:
        """What was committed is in force here: keys and bundle at once, so that no stream is sent a statement before
        the bundle that its key stands in."""
        news = set(keyring.refused) - self._told_refused
        if news:
            self._told_refused |= news
            log.error("command_keys_quarantined", key_ids=sorted(news))
        self._keyring = keyring
        served = keyring.tls.served()
        if served is not None:
            self._serve_tls(served)
        self._active_keys = {
            key_id: held
            for key_id, held in keyring.command_keys.items()
            if held.key.phase == trust_pb2.KEY_PHASE_ACTIVE
        }
        if bundle is not None and (self._bundle is None or bundle.version > self._bundle.version):
            self._bundle = bundle
            self._wakeup.spread_nowait([TOPIC])


async def _or_say(work: Awaitable[None]) -> None:
    try:
        await work
    except Refusal as refusal:
        log.warning("bundle_renewal_delayed", reason=refusal.reason, detail=refusal.detail)
    except (SealError, TrustSetupError) as error:  # what is in memory is good: it goes on being used
        log.error("trust_rows_changed", detail=str(error))
