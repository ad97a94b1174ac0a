"""Which secret encryption key writes: the database says it, so that all replicas agree while the key is changed.

Mental model
    Before the first change nothing stands in the database, and the key under which the cluster's authority is sealed
    is the one that writes.
    A change names the new key here, in one transaction with the root of what outlives the key (see `secrets`). Every
    replica holds both keys, looks here every second or two, and tells in its heartbeat what it holds and writes.
    Once the change has ended, whoever has the old key could mark rows that they wrote themselves: a replica gives it
    up, whatever the settings name, and does not take it up again for anything that the database says; nor does another
    run mark anything anew. So that the end cannot be taken back, the record of the change is marked under the key that
    it names.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Connection, Database, octets
from fleet_server.trust import master_key_store
from fleet_server.trust.keyring import TrustSetupError
from fleet_server.trust.secrets import SealError, Secrets, sealed_under

log = get_logger(__name__)

LOOK_INTERVAL_S = 1.0
TOKEN_ROOT = "token-root"
_STATE = "writing"
_TABLE = "secret_key_state"
_TAMPERED = (
    "the record of which secret encryption key writes (table secret_key_state) was changed outside the server: restore"
    " it from a backup of this database, and look at what else was changed with `fleetctl audit verify`"
)


@dataclass(frozen=True, slots=True)
class KeyState:
    """How a database stands.

    Args:
        key_id: of the key that writes; empty in a database that is being made.
        changed_at_ms: when the newest change began, Unix milliseconds; 0 when there was none.
        done_at_ms: when it ended; 0 while it has not.
    """

    key_id: bytes
    changed_at_ms: int = 0
    done_at_ms: int = 0


class MasterKeys:
    """Keeps `secrets` as the database says.

    Args:
        secrets: what this process holds.
    """

    def __init__(self, *, database: Database, secrets: Secrets, clock: Clock) -> None:
        self._database = database
        self._secrets = secrets
        self._clock = clock

    async def load(self) -> None:
        """Take the writing key and the root of what outlives it; before anything is derived, sealed or verified.

        Raises:
            TrustSetupError: this process does not hold the key that writes.
            Refusal: the database is away.
        """
        await self._database.read(self._take)

    async def run(self) -> None:
        """Follow a change, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_INTERVAL_S)
            try:
                await self.load()
            except (Refusal, TrustSetupError) as error:
                log.warning("secret_key_look_failed", error=str(error))

    def _take(self, conn: Connection) -> None:
        state = read_state(conn, self._secrets)
        key_id = state.key_id
        if not key_id:
            return  # a database that is being made
        before = self._secrets.key_ids[0]
        if not self._secrets.write_under(key_id):
            raise TrustSetupError(
                "this database is kept under another secret encryption key: start the server with the"
                " FLEET_SECRET_ENCRYPTION_KEY that it was made with, or that `fleet-server secrets rekey` was given"
            )
        if before != key_id:
            log.info("secret_key_writes", key_id=key_id.hex())
        self._give_up(state)
        root = read_token_root(conn, self._secrets)
        if root is not None:
            self._secrets.adopt_token_root(root)

    def _give_up(self, state: KeyState) -> None:
        """Let go of the previous key once nothing is under it. Where the previous one writes, the next change is yet to
        begin."""
        held = self._secrets.key_ids
        if not state.done_at_ms or len(held) == 1 or self._secrets.box.key_ids[0] != state.key_id:
            return
        self._secrets.give_up_others()
        log.warning(
            "previous_secret_key_given_up",
            hint="the change has ended: remove secret_encryption_key_previous and its _file, and destroy that key",
        )


def read_state(conn: Connection, *held: Secrets, lock: bool = False) -> KeyState:
    """How the database stands. Who holds the key that it names finds out whether a server said so; who does not is to
    refuse it, or to show it at most.

    Args:
        held: keys by which it is verified.
        lock: nobody else changes it before this transaction ends.

    Raises:
        TrustSetupError: the record was changed or removed around the server.
    """
    row = master_key_store.load_state(conn, lock=lock)
    if row is None:
        if master_key_store.read_sealed(conn, TOKEN_ROOT) is not None:  # the two are made in one transaction
            raise TrustSetupError(_TAMPERED)
        sealed = master_key_store.newest_sealed_authority(conn)
        return KeyState(b"" if sealed is None else sealed_under(sealed))
    fields = (row.name, row.key_id, row.changed_at_ms, row.done_at_ms)
    key_id = octets(row.key_id)
    macs = [each.row_mac_under(key_id, _TABLE) for each in held]
    if not all(each.verify(row.mac, *fields) for each in macs if each is not None):
        raise TrustSetupError(_TAMPERED)
    return KeyState(key_id, row.changed_at_ms, row.done_at_ms)


def begin_change(conn: Connection, old: Secrets, new: Secrets, now_ms: int) -> bool:
    """Let `new` write from now on, and seal what outlives the key under it. False when another run did so meanwhile.

    Raises:
        TrustSetupError: another run named a third key meanwhile.
    """
    master_key_store.lock_clusters(conn)  # one run at a time
    writing = read_state(conn, old, new).key_id
    if writing == new.key_ids[0]:
        return False
    if writing != old.key_ids[0]:
        raise TrustSetupError(
            "another run changes to another secret encryption key at this moment: wait for its end, then name its new"
            " key as the old one"
        )
    root = read_token_root(conn, old) or old.token_root
    master_key_store.put_sealed(conn, TOKEN_ROOT, new.box.seal(root, row=_place(TOKEN_ROOT)))
    _save(conn, new, changed_at_ms=now_ms, done_at_ms=0)
    return True


def end_change(conn: Connection, new: Secrets, now_ms: int) -> None:
    """Note that nothing is left under the key before, unless another run did."""
    state = read_state(conn, new, lock=True)
    if state.key_id == new.key_ids[0] and not state.done_at_ms:
        _save(conn, new, changed_at_ms=state.changed_at_ms, done_at_ms=now_ms)


def _save(conn: Connection, new: Secrets, *, changed_at_ms: int, done_at_ms: int) -> None:
    fields = (_STATE, new.key_ids[0], changed_at_ms, done_at_ms)
    mac = new.row_mac(_TABLE).compute(*fields)
    master_key_store.replace_state(conn, master_key_store.KeyStateRow(*fields, mac))


def read_token_root(conn: Connection, secrets: Secrets) -> bytes | None:
    """The root that outlived earlier keys; None when there was no other key yet.

    Raises:
        TrustSetupError: it does not open.
    """
    sealed = master_key_store.read_sealed(conn, TOKEN_ROOT)
    if sealed is None:
        return None
    try:
        return secrets.box.unseal(sealed, row=_place(TOKEN_ROOT))
    except SealError as error:
        raise TrustSetupError(str(error)) from error


def _place(name: str) -> str:
    return f"sealed_secrets/{name}"
