"""Credentials that are to replace the ones in force, kept until the server has been met with them.

One private file that is replaced atomically: a node killed at any moment holds the old credentials, the new ones, or
both, and never part of one.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from fleet.envelope import Signer
from fleet.identity import NodeKeys, write_private
from fleet.secrets import Secret
from fleet.v1 import trust_pb2
from fleet_node.enrollment.membership import MembershipError, read_state

_FORMAT = 1


@dataclass(frozen=True, slots=True, repr=False)
class PendingKeys:
    """New keys, and the statement that asks the server to take them."""

    keys: NodeKeys
    statement: trust_pb2.Signed


@dataclass(frozen=True, slots=True, repr=False)
class PendingRotation:
    """What is to replace the credentials in force; None means that it stays."""

    api_key: Secret[str] | None = None
    keys: PendingKeys | None = None


def save_rotation(path: Path, pending: PendingRotation) -> None:
    """Store it durably; nothing pending removes the file.

    Raises:
        OSError: it cannot be written; what stood before stands.
    """
    if pending.api_key is None and pending.keys is None:
        path.unlink(missing_ok=True)
        return
    content: dict[str, object] = {"format": _FORMAT}
    if pending.api_key is not None:
        content["api_key"] = pending.api_key.reveal()
    if pending.keys is not None:
        content["identity"] = _text(pending.keys.keys.identity.private_bytes())
        content["sealing"] = _text(pending.keys.keys.sealing.private_bytes_raw())
        content["statement"] = _text(pending.keys.statement.SerializeToString())
    write_private(path, json.dumps(content, indent=2).encode())


def load_rotation(path: Path) -> PendingRotation:
    """What is pending; nothing when there is no file.

    Raises:
        MembershipError: the file is damaged.
    """
    if not path.exists():
        return PendingRotation()
    try:
        found = json.loads(read_state(path))
        if found["format"] != _FORMAT:
            raise ValueError
        api_key = Secret(str(found["api_key"])) if "api_key" in found else None
        keys = _keys(found) if "identity" in found else None
    except (DecodeError, KeyError, TypeError, ValueError) as error:
        raise MembershipError(
            f"{path} is damaged or of another version: restore it from a backup, or move it away, and the node goes on "
            "with the credentials that it has; enroll again only if the server knows none of these any more"
        ) from error
    return PendingRotation(api_key, keys)


def _keys(found: dict[str, str]) -> PendingKeys:
    identity, sealing = _raw(found["identity"]), _raw(found["sealing"])
    keys = NodeKeys(Signer.from_private_bytes(identity), X25519PrivateKey.from_private_bytes(sealing))
    return PendingKeys(keys, trust_pb2.Signed.FromString(_raw(found["statement"])))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
