"""Client certificates of nodes: what stands in them, and whose they are."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet import node_certificate, tls, tls_certificates
from fleet.node_certificate import NodeCertificateError
from fleet.tls_certificates import CertifiedKey

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SEED = bytes(range(32))
CA = node_certificate.derive_ca(SEED, NOW)
KEY = node_certificate.public_key_bytes(ec.generate_private_key(ec.SECP256R1()))


def is_of(certificate: bytes, ca: CertifiedKey) -> bool:
    return tls_certificates.is_issued_by(tls.der_to_pem(certificate), ca.certificate_pem)


def test_every_replica_derives_the_same_ca_and_another_secret_another_one() -> None:
    certificate = node_certificate.issue(CA, "n-1", KEY, NOW)
    assert is_of(certificate, node_certificate.derive_ca(SEED, NOW + dt.timedelta(days=7)))
    assert not is_of(certificate, node_certificate.derive_ca(bytes(32), NOW))
    assert not is_of(certificate, tls_certificates.make_ca("fleet-server node CA", NOW))


def test_a_certificate_names_its_node_and_key_and_makes_a_client_alone() -> None:
    certificate = node_certificate.issue(CA, "n-1", KEY, NOW)
    for form in (certificate, tls.der_to_pem(certificate)):
        said = node_certificate.read(form)
        assert (said.node_id, said.public_key) == ("n-1", KEY)
        assert said.sha256 == tls.certificate_sha256(certificate)
        assert said.ends_ms == int((NOW + dt.timedelta(days=node_certificate.DAYS)).timestamp() * 1000)
        assert said.begins_ms < said.due_ms < said.ends_ms
    extensions = x509.load_der_x509_certificate(certificate).extensions
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert (list(usage.value), usage.critical) == ([ExtendedKeyUsageOID.CLIENT_AUTH], True)
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("what", [b"", b"rubbish", KEY], ids=["nothing", "rubbish", "key"])
def test_what_is_no_certificate_is_not_read(what: bytes) -> None:
    with pytest.raises(NodeCertificateError):
        node_certificate.read(what)


@pytest.mark.parametrize(
    "key", [b"", b"rubbish", KEY + bytes(200), KEY[:-1]], ids=["nothing", "rubbish", "long", "cut"]
)
def test_what_is_no_p256_key_is_not_certified(key: bytes) -> None:
    with pytest.raises(NodeCertificateError):
        node_certificate.issue(CA, "n-1", key, NOW)
