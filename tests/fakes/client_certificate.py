"""Client certificates as a test wants them."""

import datetime as dt

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet import node_certificate, tls
from fleet.tls_certificates import CertifiedKey


def client(ca: CertifiedKey, node_id: str, now_ms: int) -> CertifiedKey:
    """A certificate of `ca` for `node_id`, issued at `now_ms`, with a key of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
    der = node_certificate.issue(ca, node_id, node_certificate.public_key_bytes(key), now)
    return CertifiedKey(tls.der_to_pem(der), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def stranger_ca(now_ms: int) -> CertifiedKey:
    """A CA of the same name that nobody trusts."""
    return node_certificate.derive_ca(b"a stranger".ljust(32), dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC))
