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

from sqlalchemy import delete, insert, select

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Connection, Database, for_update, octets
from fleet_server.database.installation_schema import sealed_secrets, secret_key_state
from fleet_server.database.schema import cluster_authorities
from fleet_server.trust.keyring import TrustSetupError
from fleet_server.trust.secrets import SealError, Secrets, sealed_under

log = get_logger(__name__)

LOOK_INTERVAL_S = 1.0
TOKEN_ROOT = "token-root"
_STATE = "writing"
_TABLE = "secret_key_state"
_TOKEN_ROOT_ROW = select(sealed_secrets.c.sealed).where(sealed_secrets.c.name == TOKEN_ROOT)
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
    text = "SELECT name, key_id, changed_at_ms, done_at_ms, mac FROM secret_key_state"
    row = conn.exec_driver_sql(text + (for_update(conn) if lock else "")).fetchone()
    if row is None:
        if conn.execute(_TOKEN_ROOT_ROW).fetchone() is not None:  # the two are made in one transaction
            raise TrustSetupError(_TAMPERED)
        return KeyState(_first_key_id(conn))
    *fields, mac = row
    key_id = octets(fields[1])
    macs = [each.row_mac_under(key_id, _TABLE) for each in held]
    if not all(each.verify(mac, *fields) for each in macs if each is not None):
        raise TrustSetupError(_TAMPERED)
    return KeyState(key_id, fields[2], fields[3])


def begin_change(conn: Connection, old: Secrets, new: Secrets, now_ms: int) -> bool:
    """Let `new` write from now on, and seal what outlives the key under it. False when another run did so meanwhile.

    Raises:
        TrustSetupError: another run named a third key meanwhile.
    """
    one_run_at_a_time = "SELECT cluster_id FROM clusters"
    conn.exec_driver_sql(one_run_at_a_time + for_update(conn)).fetchall()
    writing = read_state(conn, old, new).key_id
    if writing == new.key_ids[0]:
        return False
    if writing != old.key_ids[0]:
        raise TrustSetupError(
            "another run changes to another secret encryption key at this moment: wait for its end, then name its new"
            " key as the old one"
        )
    root = read_token_root(conn, old) or old.token_root
    conn.execute(delete(sealed_secrets).where(sealed_secrets.c.name == TOKEN_ROOT))
    sealed = new.box.seal(root, row=_place(TOKEN_ROOT))
    conn.execute(insert(sealed_secrets).values(name=TOKEN_ROOT, sealed=sealed))
    conn.execute(delete(secret_key_state))
    _save(conn, new, changed_at_ms=now_ms, done_at_ms=0)
    return True


def end_change(conn: Connection, new: Secrets, now_ms: int) -> None:
    """Note that nothing is left under the key before, unless another run did."""
    state = read_state(conn, new, lock=True)
    if state.key_id == new.key_ids[0] and not state.done_at_ms:
        conn.execute(delete(secret_key_state))
        _save(conn, new, changed_at_ms=state.changed_at_ms, done_at_ms=now_ms)


def _save(conn: Connection, new: Secrets, *, changed_at_ms: int, done_at_ms: int) -> None:
    fields = (_STATE, new.key_ids[0], changed_at_ms, done_at_ms)
    names = ("name", "key_id", "changed_at_ms", "done_at_ms", "mac")
    mac = new.row_mac(_TABLE).compute(*fields)
    conn.execute(insert(secret_key_state).values(dict(zip(names, (*fields, mac), strict=True))))


def read_token_root(conn: Connection, secrets: Secrets) -> bytes | None:
    """The root that outlived earlier keys; None when there was no other key yet.

    Raises:
        TrustSetupError: it does not open.
    """
    row = conn.execute(_TOKEN_ROOT_ROW).fetchone()
    if row is None:
        return None
    try:
        return secrets.box.unseal(bytes(row[0]), row=_place(TOKEN_ROOT))
    except SealError as error:
        raise TrustSetupError(str(error)) from error


def _first_key_id(conn: Connection) -> bytes:
    newest = cluster_authorities.c.generation.desc()  # of those before it nothing private is kept
    row = conn.execute(select(cluster_authorities.c.sealed_private).order_by(newest).limit(1)).fetchone()
    return b"" if row is None else sealed_under(bytes(row[0]))


def _place(name: str) -> str:
    return f"sealed_secrets/{name}"
