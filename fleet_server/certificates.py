"""The server's own TLS: CA and leaf on disk, renewal before the leaf ends, and reload without a restart.

Mental model
    `ca.pem` and `leaf.pem` hold certificate and key together, so that each is replaced in one atomic step and never
    torn. At two thirds of its life the leaf is replaced. gRPC asks for the current one at each TLS handshake; streams
    that are open stay. The leaf before it stays accepted in handshakes until it ends: a node that fetched it a moment
    ago has signed its hash. Files are looked at again with each check, so that a leaf that another process or a
    person put there is served too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fleet import tls
from fleet.clock import Clock
from fleet.identity import PrivateFileError, private_folder, read_private, write_private
from fleet.logs import get_logger
from fleet.tls import CertifiedKey, certificate_sha256

log = get_logger(__name__)

CHECK_INTERVAL_S = 60.0
_KEY_BEGINS = b"-----BEGIN PRIVATE KEY-----"


class CertificateError(Exception):
    """The TLS files cannot be used. The message says what to do."""


@dataclass(frozen=True, slots=True)
class _Leaves:
    current: CertifiedKey
    previous_der: bytes


class ServerCertificates:
    """CA and leaf of one installation. Build it with `open_certificates`.

    Args:
        folder: 0700; see the module.
        hosts: DNS names and addresses that the leaf is for.
        clock: decides when the leaf is due.
    """

    def __init__(self, folder: Path, hosts: Sequence[str], clock: Clock, ca: CertifiedKey, leaves: _Leaves) -> None:
        self._folder = folder
        self._hosts = tuple(hosts)
        self._clock = clock
        self._ca = ca
        self._leaves = leaves

    @property
    def ca_der(self) -> bytes:
        """The CA certificate, for join tokens and bundles."""
        return self._ca.certificate_der

    @property
    def leaf_der(self) -> bytes:
        """The leaf that new connections are shown."""
        return self._leaves.current.certificate_der

    def accepted_leaves(self) -> frozenset[bytes]:
        """SHA-256 of the leaves that a node's handshake may name: the current one, and the one before while it
        lasts."""
        accepted = {certificate_sha256(self.leaf_der)}
        previous = self._leaves.previous_der
        if previous and _validity(previous)[1] > self._now():
            accepted.add(certificate_sha256(previous))
        return frozenset(accepted)

    def credentials(self, client_ca_pem: bytes | None = None) -> grpc.ServerCredentials:
        """Credentials for one listener; they follow every renewal. The CA is shown too, for `fleetctl login` to pin.

        Args:
            client_ca_pem: every caller has to show a certificate of this CA; None asks for none.
        """
        served = self._leaves.current

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            current = self._leaves.current
            if current is served:
                return None  # gRPC keeps what it has
            served = current
            return self._configuration(current, client_ca_pem)

        # The stubs do not know that the fetcher may answer None.
        first, mutual = self._configuration(served, client_ca_pem), client_ca_pem is not None
        return grpc.dynamic_ssl_server_credentials(first, fetch, mutual)  # type: ignore[arg-type]

    def renew(self) -> bool:
        """Take up a leaf that was put into the folder, or make one when the current one is due; whether there is a
        new one.

        Raises:
            CertificateError: the files cannot be read or written; the current leaf stays.
        """
        with _explained(self._folder):
            stored = _load_leaf(self._folder, self._ca)
            if stored is None or _leaf_is_due(stored, self._hosts, self._now()):
                stored = _issue(self._folder, self._ca, self._hosts, self._now(), before=stored)
        if stored.certificate_pem == self._leaves.current.certificate_pem:
            return False
        self._leaves = _Leaves(stored, self.leaf_der)
        return True

    async def run(self) -> None:
        """Check each minute, until cancelled. What fails is logged and tried again."""
        while True:
            await self._clock.sleep(CHECK_INTERVAL_S)
            try:
                renewed = self.renew()
            except CertificateError as error:
                log.error("certificate_renewal_failed", error=str(error))
                continue
            if renewed:
                log.info("certificate_renewed", until=self._leaves.current.not_after.isoformat())

    def _configuration(self, leaf: CertifiedKey, client_ca_pem: bytes | None) -> grpc.ServerCertificateConfiguration:
        chain_pem = leaf.certificate_pem + self._ca.certificate_pem
        return grpc.ssl_server_certificate_configuration([(leaf.private_key_pem, chain_pem)], client_ca_pem)

    def _now(self) -> dt.datetime:
        return _utc(self._clock)


def open_certificates(folder: Path, hosts: Sequence[str], clock: Clock) -> ServerCertificates:
    """Load the TLS files; make CA and leaf where there are none, and a new leaf when it is due or for other hosts.

    Args:
        folder: made with mode 0700.
        hosts: DNS names and IP addresses of the leaf; the first names it.
        clock: for validity.

    Raises:
        CertificateError: the files cannot be used.
    """
    with _explained(folder):
        private_folder(folder)
        now = _utc(clock)
        ca = _load(folder / "ca.pem")
        if ca is None:
            ca = tls.make_ca("fleet-server CA", now)
            _store(folder / "ca.pem", ca)
        (folder / "ca.crt").write_bytes(ca.certificate_pem)  # the public part, for operators to copy
        leaf = _load_leaf(folder, ca)
        if leaf is None or _leaf_is_due(leaf, hosts, now):
            leaf = _issue(folder, ca, hosts, now, before=leaf)
        previous = _load_previous(folder)
        return ServerCertificates(folder, hosts, clock, ca, _Leaves(leaf, previous))


def _issue(
    folder: Path, ca: CertifiedKey, hosts: Sequence[str], now: dt.datetime, *, before: CertifiedKey | None
) -> CertifiedKey:
    leaf = tls.make_leaf(ca, hosts, now)
    if before is not None:
        # First, so that a crash in between leaves it accepted twice rather than never.
        write_private(folder / "previous.crt", before.certificate_pem)
    _store(folder / "leaf.pem", leaf)
    return leaf


def _leaf_is_due(leaf: CertifiedKey, hosts: Sequence[str], now: dt.datetime) -> bool:
    begins, ends = _validity(leaf.certificate_der)
    covered = set(tls.host_names(hosts)) <= set(tls.leaf_hosts(leaf.certificate_pem))
    return now >= begins + (ends - begins) * 2 / 3 or not covered


@lru_cache(maxsize=16)
def _validity(der: bytes) -> tuple[dt.datetime, dt.datetime]:
    certificate = x509.load_der_x509_certificate(der)
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _store(path: Path, pair: CertifiedKey) -> None:
    write_private(path, pair.certificate_pem + pair.private_key_pem)


def _load(path: Path) -> CertifiedKey | None:
    if not path.exists():
        return None
    content = read_private(path)
    certificate, separator, key = content.partition(_KEY_BEGINS)
    if not separator:
        raise ValueError(f"{path.name} holds no private key")
    shown = x509.load_pem_x509_certificate(certificate).public_key()
    if load_pem_private_key(separator + key, password=None).public_key() != shown:
        raise ValueError(f"the private key in {path.name} is not that of its certificate")
    return CertifiedKey(certificate, separator + key)


def _load_leaf(folder: Path, ca: CertifiedKey) -> CertifiedKey | None:
    leaf = _load(folder / "leaf.pem")
    if leaf is not None and not tls.is_issued_by(leaf.certificate_pem, ca.certificate_pem):
        raise ValueError("leaf.pem is not signed by ca.pem, which is all that nodes trust: remove it to get a new one")
    return leaf


def _load_previous(folder: Path) -> bytes:
    path = folder / "previous.crt"
    return tls.pem_to_der(read_private(path)) if path.exists() else b""


def _utc(clock: Clock) -> dt.datetime:
    return dt.datetime.fromtimestamp(clock.now_ms() / 1000, dt.UTC)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn whatever can go wrong with TLS files into one error that names the folder and the remedy."""
    try:
        yield
    except PrivateFileError as error:
        raise CertificateError(str(error)) from error
    except OSError as error:
        raise CertificateError(f"the TLS files in {folder} cannot be used: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(
            f"the TLS files in {folder} are damaged ({error}): restore them from a backup;"
            " without ca.pem every node has to learn a new CA"
        ) from error
