"""The certificate of a node's probe listener: self-signed, made once and kept in the state folder.

Peers pin exactly it, so a new one makes this node a stranger to them until the server has handed it on. It outlives
machines therefore, and its times are so wide that no clock which is wrong by years refuses it.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from fleet.identity import PrivateFileError, read_private, write_private
from fleet.logs import get_logger
from fleet.tls_certificates import CertifiedKey, make_self_signed
from fleet_node.routes.peer_channels import CERTIFICATE_NAME

log = get_logger(__name__)

LEAF_YEARS = 30
RENEW_YEARS = 1
_BEGINS = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NOT_BEFORE_THIS = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""No machine runs this earlier: a clock that says so is not set."""
_LATEST = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
_YEAR = dt.timedelta(days=365)
_KEY_BEGINS = b"-----BEGIN PRIVATE KEY-----"


def load_or_make_leaf(path: Path, now: dt.datetime) -> CertifiedKey:
    """The certificate and key in a file, or new ones that replace it: it is missing, unusable, open to others or has
    less than a year left.

    Args:
        path: file of mode 0600 in the state folder.
        now: UTC, by a clock that may be wrong.

    Raises:
        OSError: a new one cannot be stored.
    """
    now = max(now, _NOT_BEFORE_THIS)
    if path.exists():
        try:
            leaf = _load(path)
            if leaf.not_after - now >= RENEW_YEARS * _YEAR:
                return leaf
            log.info("probe_certificate_renewed", ended=leaf.not_after.isoformat())
        except (PrivateFileError, ValueError, TypeError) as error:
            log.warning("probe_certificate_not_usable", error=str(error))
    ends = min(now, _LATEST - LEAF_YEARS * _YEAR) + LEAF_YEARS * _YEAR
    leaf = make_self_signed(CERTIFICATE_NAME, _BEGINS, ends)
    write_private(path, leaf.certificate_pem + leaf.private_key_pem)
    return leaf


def _load(path: Path) -> CertifiedKey:
    certificate_pem, begins, key = read_private(path).partition(_KEY_BEGINS)
    leaf = CertifiedKey(certificate_pem, begins + key)
    if not leaf.is_pair:
        raise ValueError("its key is another certificate's")
    return leaf
