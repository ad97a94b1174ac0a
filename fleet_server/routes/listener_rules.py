"""What a node may say of its probe listener. Pure."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

from fleet.errors import Reason, Refusal
from fleet.tls import split_endpoint
from fleet.v1 import gateway_pb2

MAX_ENDPOINTS = 4
MAX_ENDPOINT_CHARS = 261  # a host name of 255, a colon, a port
MAX_CERTIFICATE_BYTES = 4096


def checked_listener(listener: gateway_pb2.ProbeListener) -> gateway_pb2.ProbeListener:
    """A probe listener that peers can dial and pin (docs/protocol.md, "Probes").

    Raises:
        Refusal: MALFORMED.
    """
    if not 1 <= len(listener.endpoints) <= MAX_ENDPOINTS:
        raise _malformed(f"a probe listener has 1 to {MAX_ENDPOINTS} endpoints: see probe_endpoints")
    for endpoint in listener.endpoints:
        if len(endpoint) > MAX_ENDPOINT_CHARS:
            raise _malformed(f"a probe endpoint has at most {MAX_ENDPOINT_CHARS} characters")
        try:
            split_endpoint(endpoint)
        except ValueError as error:
            raise _malformed(f"probe_endpoints: {error}") from None
    if len(listener.certificate) > MAX_CERTIFICATE_BYTES:
        raise _malformed(f"the certificate of a probe listener has at most {MAX_CERTIFICATE_BYTES} bytes")
    try:
        key = x509.load_der_x509_certificate(listener.certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _malformed("the certificate of the probe listener cannot be read") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _malformed("the certificate of the probe listener is for another key than ECDSA P-256")
    return listener


def _malformed(detail: str) -> Refusal:
    return Refusal(Reason.MALFORMED, detail)
