"""Before a server serves: the first installation, and what every start needs from disk and database.

`init` may be run again at any time: it makes what is missing and changes nothing that is there. The owner's token
exists in one place only, the answer of the run that made it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.identity import private_folder
from fleet.logs import get_logger
from fleet.secrets import Secret
from fleet.tls import certificate_sha256, split_endpoint
from fleet_server.admin.access import OperatorService
from fleet_server.audit.service import AuditService
from fleet_server.certificates import ServerCertificates, open_certificates
from fleet_server.config import Settings
from fleet_server.database import migrate
from fleet_server.database.dialects import dialect_of, parse_url
from fleet_server.database.engine import Database
from fleet_server.database.migrate import RUNNABLE, SchemaError, SchemaReport, SchemaState
from fleet_server.database.wakeup import Wakeup
from fleet_server.replicas.identity import own_replica_id
from fleet_server.trust.master_keys import MasterKeys
from fleet_server.trust.secrets import (
    KEY_FILE_NAME,
    SecretKeyError,
    Secrets,
    make_key_file,
    parse_master_key,
    read_key_file,
)
from fleet_server.trust.service import TrustService, TrustSetupError
from fleet_server.trust.tls_rotation import TlsRotation

log = get_logger(__name__)

_INIT_WRITER = "init-"


class NotInitialisedError(Exception):
    """There is nothing to serve yet. The message says what to run."""


class AlreadyRunningError(Exception):
    """Another server process uses the same data folder and name."""


class HeldFolder(NamedTuple):
    """The data folder, while this process holds it; `locks` are descriptors of the files that say so, the replica's own
    one last."""

    locks: tuple[int, ...]

    def place(self) -> str:
        """Tells this folder, on this running kernel, from every other one, its copies included: whoever holds its lock
        knows that the process before, which held the same file, is gone."""
        try:
            kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
        file = os.fstat(self.locks[-1])
        return hashlib.sha256(f"{kernel}/{file.st_dev}/{file.st_ino}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Installation:
    """What `init` leaves behind; `owner_token` only from the run that made the owner, `made_key_file` likewise."""

    cluster_id: str
    cluster_name: str
    authority_key: bytes
    tls_ca_file: Path
    tls_ca_sha256: bytes
    schema_before: SchemaReport
    made_key_file: Path | None
    owner: str
    owner_token: Secret[str] | None
    installation_id: str


async def init(settings: Settings, *, owner: str, clock: Clock) -> Installation:
    """Make what is missing: data folder, secret key, TLS, schema, cluster with its keys and first bundle, and an
    owner; none in strict mode, where the first owner comes with the activation manifest.

    Args:
        settings: validated.
        owner: name of the operator with the role owner; when there is one of that name, none is made.
        clock: for everything that carries a time.

    Raises:
        PrivateFileError, CertificateError: the data folder cannot be used.
        SecretKeyError, TrustSetupError: the secret key is missing or not that of the database.
        DatabaseUnreachableError, SchemaError: the database cannot be used.
        Refusal: a bad owner name, or the database went away.
    """
    private_folder(settings.data_dir)
    url = settings.resolved_database_url()
    # Two runs at once would each make a secret key, and one of them would lose everything sealed under its own. On one
    # database the second, of another machine, finds what the first one made.
    with _locked(settings.data_dir / "init.lock", fcntl.LOCK_EX), migrate.sole_init(url):
        secrets, made_key_file = _secrets_or_new(settings)
        certificates = open_tls(settings, clock)
        schema_before = migrate.upgrade(url)
        database = Database(url, readers=1)
        wakeup = Wakeup()
        writer = _INIT_WRITER + os.urandom(4).hex()  # a chain of its own, whatever becomes of the lock
        audit = AuditService(database=database, clock=clock, wakeup=wakeup, writer=writer, row_mac=secrets.row_mac)
        trust = TrustService(
            database=database,
            secrets=secrets,
            clock=clock,
            audit=audit,
            wakeup=wakeup,
            cluster_name=settings.cluster_name,
        )
        database.start()
        try:
            try:
                await MasterKeys(database=database, secrets=secrets, clock=clock).load()
                await trust.create_cluster()
                await trust.load()
            except TrustSetupError:
                if made_key_file is not None:
                    made_key_file.unlink()  # it opens nothing here, and would hide that the right one is missing
                raise
            tls = TlsRotation.of_server(trust, lambda *_: [], settings, certificates)
            await tls.open(settings.advertised_endpoints(), as_replica=False)
            operators = OperatorService(database=database, clock=clock, audit=audit, secrets=secrets)
            token = None if settings.is_strict else await _create_owner(operators, owner)
            await audit.checkpoint(trust.sign_checkpoint, trust.cluster_id)
        finally:
            await database.close()
    return Installation(
        cluster_id=trust.cluster_id,
        cluster_name=trust.cluster_name,
        authority_key=trust.authority.public_key,
        tls_ca_file=_tls_folder(settings) / "ca.crt",
        tls_ca_sha256=certificate_sha256(certificates.ca_der),
        schema_before=schema_before,
        made_key_file=made_key_file,
        owner=owner,
        owner_token=token,
        installation_id=trust.installation_id,
    )


def load_secrets(settings: Settings) -> Secrets:
    """The secrets of an installation.

    Raises:
        SecretKeyError: there is no key, or it cannot be used.
    """
    return Secrets(master_key(settings), previous_master_key(settings))


def previous_master_key(settings: Settings) -> Secret[bytes] | None:
    """The master key before, while it is being replaced.

    Raises:
        SecretKeyError: it cannot be used.
    """
    configured = settings.secret_encryption_key_previous.get_secret_value()
    if configured:
        return parse_master_key(Secret(configured), "FLEET_SECRET_ENCRYPTION_KEY_PREVIOUS")
    path = settings.secret_encryption_key_previous_file
    return None if path is None else read_key_file(path)


def master_key(settings: Settings) -> Secret[bytes]:
    """The master key.

    Raises:
        SecretKeyError: there is none, or it cannot be used.
    """
    configured = settings.secret_encryption_key.get_secret_value()
    if configured:
        return parse_master_key(Secret(configured), "FLEET_SECRET_ENCRYPTION_KEY")
    path = settings.secret_encryption_key_file or settings.data_dir / KEY_FILE_NAME
    if not path.exists() and settings.secret_encryption_key_file is None:
        raise SecretKeyError(
            f"there is no secret encryption key: run `fleet-server init`, or restore {path} from a backup"
        )
    return read_key_file(path)


def open_tls(settings: Settings, clock: Clock) -> ServerCertificates:
    """Certificates of an installation; the database says which.

    Raises:
        CertificateError: their folder cannot be used.
    """
    endpoint_hosts = [split_endpoint(endpoint)[0] for endpoint in settings.advertised_endpoints()]
    return open_certificates(_tls_folder(settings), endpoint_hosts, clock)


def require_schema(settings: Settings) -> None:
    """Check that the database has this server's schema, or a newer one that it may run on. An older SQLite file is
    upgraded here and now, once no other server works on it.

    Raises:
        NotInitialisedError: it is empty.
        AlreadyRunningError: it is older, and a server runs on it.
        SchemaError: older, or too new; the message names the command.
        DatabaseUnreachableError: it does not answer.
    """
    url = settings.resolved_database_url()
    report = migrate.check(url)
    if report.state is SchemaState.COMPATIBLE:
        log.info("database_is_newer", revision=report.found, own_revision=report.wanted)
    if report.state in RUNNABLE:
        return
    if report.state is SchemaState.EMPTY:
        raise _not_initialised(settings)
    if report.state is SchemaState.OLDER and is_sqlite(settings):
        upgrade_schema(settings)
        log.info("database_upgraded", revision_before=report.found, revision=report.wanted)
        return
    step = "install the newer fleet-server"
    if report.state is SchemaState.OLDER:
        step = "run `fleet-server db upgrade`"
    raise SchemaError(
        f"the database has schema revision {report.found}, this server needs {report.wanted}: {step}, then start again"
    )


def upgrade_schema(settings: Settings) -> SchemaReport:
    """Bring the schema to this server's revision; what it was before. A SQLite file only while no server works on it.

    Raises:
        NotInitialisedError: there is no SQLite database to upgrade.
        AlreadyRunningError: a server runs on the SQLite file that has to be changed.
        SchemaError: it is newer than this server.
        DatabaseUnreachableError: it does not answer.
    """
    url = settings.resolved_database_url()
    if not is_sqlite(settings):
        return migrate.upgrade(url)
    report = migrate.check(url)
    if report.state is SchemaState.EMPTY:
        raise _not_initialised(settings)
    if report.state in RUNNABLE:
        return report
    with sole_server(settings):
        return migrate.upgrade(url)


@contextlib.contextmanager
def sole_server(settings: Settings) -> Iterator[HeldFolder]:
    """Hold the data folder for one server process: two would write one SQLite file, or one replica's audit chain.

    Raises:
        AlreadyRunningError: another process holds it.
        PrivateFileError: the folder is open to others.
    """
    private_folder(settings.data_dir)
    with contextlib.ExitStack() as held:

        def hold(name: str) -> int:
            return held.enter_context(_locked(settings.data_dir / f"{name}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB))

        try:
            locks = [hold("server")] if is_sqlite(settings) or not settings.replica_id else []
            locks.append(hold(f"server-{settings.replica_id or own_replica_id(settings.data_dir)}"))
        except BlockingIOError:
            raise AlreadyRunningError(
                f"another fleet-server runs on {settings.data_dir}: stop it first, or give this one a folder of its own"
            ) from None
        yield HeldFolder(tuple(locks))


def is_sqlite(settings: Settings) -> bool:
    """Whether the database is one file, which one process writes."""
    return dialect_of(parse_url(settings.resolved_database_url())) == "sqlite"


def _not_initialised(settings: Settings) -> NotInitialisedError:
    return NotInitialisedError(
        f"the database is empty (data folder {settings.data_dir}): run `fleet-server init` with the same settings first"
    )


async def _create_owner(operators: OperatorService, name: str) -> Secret[str] | None:
    try:
        _, token = await operators.create("fleet-server init", name, "owner")
    except Refusal as refusal:
        if refusal.reason is Reason.CONFLICT:
            return None
        raise
    return token


def _secrets_or_new(settings: Settings) -> tuple[Secrets, Path | None]:
    path = settings.data_dir / KEY_FILE_NAME
    configured = settings.secret_encryption_key.get_secret_value() or settings.secret_encryption_key_file
    if configured or path.exists():
        return load_secrets(settings), None
    # Settings let only a development server come here.
    return Secrets(make_key_file(path)), path


def _tls_folder(settings: Settings) -> Path:
    return settings.data_dir / "tls"


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[int]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)
