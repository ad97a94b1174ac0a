"""What the server's listeners show: the cluster's own certificate, or one from outside, changed without a restart.

Mental model
    The database holds TLS CAs and the certificate that every replica shows, keys sealed; `take` is told whenever one
    of them changed. gRPC asks for the current certificate at each TLS handshake; streams that are open stay. What was
    shown before stays accepted in handshakes until it ends, or its CA does: a node that fetched it a moment ago has
    signed its hash.
    While the ACTIVE CA is one from outside, its certificate lies in `outside.pem`, chain and key together, put there
    by a person and looked at again each minute. Without that file the own certificate is shown, for the terminator
    that shows the other one; with one that is half written, what was shown before, for nodes may believe no other.
    `ca.crt` is written for people to copy: the CAs that a caller may meet.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509

from fleet import tls
from fleet.clock import Clock
from fleet.identity import PrivateFileError, private_folder, read_private, write_private
from fleet.logs import get_logger
from fleet.tls import certificate_sha256
from fleet.tls_certificates import CertifiedKey

log = get_logger(__name__)

OUTSIDE_FILE = "outside.pem"
ENDS_SOON = dt.timedelta(days=30)
"""An own certificate is replaced before; a CA, and a certificate from outside, a person has to replace."""
_CERTIFICATES = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)
_ROUNDS = 16


class CertificateError(Exception):
    """The TLS files cannot be used. The message says what to do."""


@dataclass(frozen=True, slots=True, repr=False)
class ServedTls:
    """What the database says about TLS.

    Args:
        leaf: the cluster's own certificate.
        issuer_der: the own CA that signed it.
        active_der: the CA whose certificate is to be shown.
        published_der: CAs that nodes trust, the ACTIVE one first.
    """

    leaf: CertifiedKey
    issuer_der: bytes
    active_der: bytes
    published_der: Sequence[bytes]


class _Shown(NamedTuple):
    """A certificate with its key, and the CA (DER) that it proves itself by."""

    pair: CertifiedKey
    ca_der: bytes


class ServerCertificates:
    """Certificates of one server process. Build it with `open_certificates`, and give it what it shows with `take`.

    Args:
        folder: 0700; see the module.
        endpoint_hosts: names and addresses under which nodes come, which a certificate from outside has to be for.
        clock: decides what has ended.
    """

    def __init__(self, folder: Path, endpoint_hosts: Sequence[str], clock: Clock) -> None:
        self._folder = folder
        self._endpoint_hosts = tuple(endpoint_hosts)
        self._clock = clock
        self._served: ServedTls | None = None
        self._current: _Shown | None = None
        self._shown: dict[bytes, bytes] = {}
        """DER of each certificate that was shown -> DER of the CA that it proves itself by."""
        self._roots = b""
        self._looked_on: dt.date | None = None
        self._told = ""
        self._tried: dict[bytes, tuple[tuple[int, ...], CertifiedKey | None]] = {}

    def take(self, served: ServedTls) -> None:
        """Show what the database says from now on."""
        self._served = served
        self._choose()
        roots = b"".join(tls.der_to_pem(der) for der in dict.fromkeys([*served.published_der, served.issuer_der]))
        if roots != self._roots:
            self._roots = roots
            try:
                write_private(self._folder / "ca.crt", roots)  # whoever copies it finds it whole
            except OSError as error:
                log.error("ca_file_not_written", path=str(self._folder / "ca.crt"), error=error.strerror)

    @property
    def ca_der(self) -> bytes:
        """The CA whose certificate callers are to meet."""
        return self._known.active_der

    @property
    def leaf_der(self) -> bytes:
        """The certificate that new connections are shown."""
        return self._leaf.certificate_der

    def accepted_leaves(self) -> frozenset[bytes]:
        """SHA-256 of the certificates that a node's handshake may name: the current one, and those that this process
        showed before while they last and callers may meet their CA. Whoever stole a CA that was revoked may have such
        a certificate's key, too."""
        now, cas = self._now(), {*self._known.published_der, self._known.issuer_der}
        self._shown = {
            der: ca_der
            for der, ca_der in self._shown.items()
            if der == self.leaf_der or (ca_der in cas and _ends(der) > now)
        }
        return frozenset(certificate_sha256(der) for der in self._shown)

    def can_show(self, ca_der: bytes) -> bool:
        """Whether `outside.pem` would prove this server to nodes that trust that CA."""
        return self._outside(ca_der) is not None

    def credentials(self, client_ca_pem: bytes | None = None) -> grpc.ServerCredentials:
        """Credentials for one listener; they follow every change. The own CA is shown too, for `fleetctl login` to pin.

        Args:
            client_ca_pem: every caller has to show a certificate of this CA; None asks for none.
        """
        served = self._leaf

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            current = self._leaf
            if current is served:
                return None  # gRPC keeps what it has
            served = current
            return _configuration(current, client_ca_pem)

        # The stubs do not know that the fetcher may answer None.
        first, mutual = _configuration(served, client_ca_pem), client_ca_pem is not None
        return grpc.dynamic_ssl_server_credentials(first, fetch, mutual)  # type: ignore[arg-type]

    def look(self) -> None:
        """See whether there is another `outside.pem`; the log tells once a day what ends soon."""
        if self._served is None:
            return
        self._tried.clear()
        self._choose()
        now, today = self._now(), self._now().date()
        if today == self._looked_on:
            return
        self._looked_on = today
        cas = dict.fromkeys([self._served.active_der, self._served.issuer_der])
        for what, der in (*(("TLS CA", ca_der) for ca_der in cas), ("certificate", self.leaf_der)):
            if _ends(der) - now < ENDS_SOON:
                sha256, until = certificate_sha256(der).hex(), _ends(der).isoformat()
                log.warning("certificate_ends_soon", what=what, sha256=sha256, until=until)

    @property
    def _known(self) -> ServedTls:
        if self._served is None:
            raise RuntimeError("ServerCertificates.take() was not called")
        return self._served

    @property
    def _leaf(self) -> CertifiedKey:
        if self._current is None:
            raise RuntimeError("ServerCertificates.take() was not called")
        return self._current.pair

    def _choose(self) -> None:
        known, chosen = self._known, None
        if known.active_der != known.issuer_der:
            chosen = self._outside(known.active_der) or self._kept(known.active_der)
        if chosen is None:
            chosen = CertifiedKey(
                known.leaf.certificate_pem + tls.der_to_pem(known.issuer_der), known.leaf.private_key_pem
            )
            by_der = known.issuer_der
        else:
            by_der = known.active_der
        if self._current is not None and chosen.certificate_pem == self._current.pair.certificate_pem:
            return
        if self._current is not None:
            sha256 = certificate_sha256(chosen.certificate_der).hex()
            log.info("certificate_changed", sha256=sha256, until=_ends(chosen.certificate_der).isoformat())
        self._current = _Shown(chosen, by_der)
        self._shown[chosen.certificate_der] = by_der

    def _outside(self, ca_der: bytes) -> CertifiedKey | None:
        """What `outside.pem` holds, if a node that trusts `ca_der` would believe it; the log says why not. Tried once
        between two looks, unless the file was changed: it is asked for with each heartbeat."""
        try:
            file = (self._folder / OUTSIDE_FILE).stat()
        except OSError:
            return None
        state = (file.st_ino, file.st_mtime_ns, file.st_ctime_ns, file.st_size)
        known = self._tried.get(ca_der)
        if known is None or known[0] != state:
            known = self._tried[ca_der] = state, self._try_outside(ca_der)
        return known[1]

    def _try_outside(self, ca_der: bytes) -> CertifiedKey | None:
        path = self._folder / OUTSIDE_FILE
        try:
            content = read_private(path)
            for host in self._endpoint_hosts:
                _shake_hands(path, ca_der, host)
            if read_private(path) != content:
                raise OSError("it is being replaced")  # what was tried is not what was read
        except (PrivateFileError, OSError, ValueError) as error:
            self._tell(f"{path} proves nothing to nodes: {error}")
            return None
        self._told = ""
        key = _KEY.search(content)
        return CertifiedKey(b"".join(_CERTIFICATES.findall(content)), key.group() if key else b"")

    def _kept(self, ca_der: bytes) -> CertifiedKey | None:
        """What is shown of a CA from outside, while it lasts and a file is there: one that is not whole, or not right,
        takes nothing away."""
        now = self._current
        if now is None or now.ca_der != ca_der or not (self._folder / OUTSIDE_FILE).exists():
            return None
        return now.pair if _ends(now.pair.certificate_der) > self._now() else None

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            log.error("certificate_unfit", detail=what)

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock.now_ms() / 1000, dt.UTC)


def open_certificates(folder: Path, endpoint_hosts: Sequence[str], clock: Clock) -> ServerCertificates:
    """Certificates that show nothing yet.

    Args:
        folder: made with mode 0700.
        endpoint_hosts: names and addresses under which nodes come.
        clock: for validity.

    Raises:
        CertificateError: the folder cannot be used.
    """
    try:
        private_folder(folder)
    except PrivateFileError as error:
        raise CertificateError(str(error)) from error
    return ServerCertificates(folder, endpoint_hosts, clock)


def _configuration(shown: CertifiedKey, client_ca_pem: bytes | None) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(shown.private_key_pem, shown.certificate_pem)], client_ca_pem)


def _shake_hands(path: Path, ca_der: bytes, host: str) -> None:
    """Play a node that dials `host` and trusts `ca_der` alone against a server that shows `path`, in memory.

    Raises:
        OSError: the TLS library's reason why not.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    server.load_cert_chain(path, password=lambda: "")  # asks nobody: a key under a passphrase is of no use here
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = tls.client_context([ca_der]).wrap_bio(to_client, to_server, server_hostname=host)
    called = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_ROUNDS):
        with contextlib.suppress(ssl.SSLWantReadError):
            caller.do_handshake()
            return
        with contextlib.suppress(ssl.SSLWantReadError):
            called.do_handshake()
    raise OSError("the TLS handshake does not end")


@lru_cache(maxsize=16)
def _ends(der: bytes) -> dt.datetime:
    return x509.load_der_x509_certificate(der).not_valid_after_utc
