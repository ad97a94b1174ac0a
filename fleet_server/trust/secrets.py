"""The installation's secret encryption key, and what is derived from it: sealing at rest and row MACs.

One 32-byte master key, given by `FLEET_SECRET_ENCRYPTION_KEY`, its `_FILE` form, or the data folder of a development
server. Nothing uses it directly: HKDF-SHA256 (RFC 5869) derives a key for each purpose, so that no two uses can be
played against each other.

While the master key is being changed there are two. Both open and verify; one of them writes, the same on every replica
(`master_keys`). Once the change has ended the old one counts for nothing, also where it is still configured.
Keys behind what left the server (tokens, api_keys, ids) outlive the master key: their root is sealed under the new one,
or every node and operator would need new credentials.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from fleet.identity import PrivateFileError, read_private, write_private
from fleet.mac import HmacSha256
from fleet.secrets import Secret

MASTER_KEY_BYTES = 32
KEY_FILE_NAME = "secret.key"
_INFO = b"fleet.v1/server/"
_FORMAT = b"\x01"
_KEY_ID_BYTES = 8
_SALT_BYTES = 16
_NONCE_BYTES = 12
_HEADER_BYTES = len(_FORMAT) + _KEY_ID_BYTES + _SALT_BYTES + _NONCE_BYTES
_HOW_TO_MAKE = "make one with `openssl rand -base64 32`"


class SecretKeyError(Exception):
    """There is no usable secret encryption key. The message says what to do and holds nothing of the key."""


class SealError(Exception):
    """Something sealed does not open: another key, another row, or it was changed."""


def parse_master_key(text: Secret[str], source: str) -> Secret[bytes]:
    """32 bytes from base64 text, standard or URL-safe.

    Args:
        text: as configured.
        source: where it came from, for the message.

    Raises:
        SecretKeyError: it is not 32 bytes of base64.
    """
    compact = "".join(text.reveal().split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        raw = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise SecretKeyError(f"the secret encryption key from {source} is not base64: {_HOW_TO_MAKE}") from None
    if len(raw) != MASTER_KEY_BYTES:
        raise SecretKeyError(
            f"the secret encryption key from {source} has {len(raw)} bytes, not {MASTER_KEY_BYTES}: {_HOW_TO_MAKE}"
        )
    return Secret(raw)


def read_key_file(path: Path) -> Secret[bytes]:
    """The master key from a file that only its owner may read.

    Raises:
        SecretKeyError: missing, open to others, or no key.
    """
    try:
        text = read_private(path).decode("ascii", "replace")
    except PrivateFileError as error:
        raise SecretKeyError(f"no secret encryption key: {error}") from error
    return parse_master_key(Secret(text), str(path))


def make_key_file(path: Path) -> Secret[bytes]:
    """Write a new master key, 0600, durable before it returns. The caller has checked that none is there."""
    raw = os.urandom(MASTER_KEY_BYTES)
    write_private(path, base64.b64encode(raw) + b"\n")
    return Secret(raw)


class Turn:
    """Which of the keys that are held writes, and whether the others still count; shared by everything that comes from
    one `Secrets`."""

    __slots__ = ("alone", "writes")

    def __init__(self) -> None:
        self.writes = 0
        self.alone = False


class SecretBox:
    """AES-256-GCM for what rests in the database; key id and row id are associated data, so no value serves in
    another row.

    Of several keys all open, by the id in front of what was sealed; the one whose turn it is seals.

    Each sealing draws a fresh key (HMAC-SHA256 of a random salt): random nonces under one key would run out on a busy
    server.
    Layout: format (1 byte), key id (8), salt (16), nonce (12), ciphertext and tag.
    """

    def __init__(self, *keys: bytes, turn: Turn | None = None) -> None:
        self._keys = {hashlib.sha256(_INFO + b"key-id\x00" + key).digest()[:_KEY_ID_BYTES]: key for key in keys}
        self._key_ids = tuple(self._keys)
        self._turn = turn or Turn()

    @property
    def key_ids(self) -> tuple[bytes, ...]:
        """Ids of the keys that open, as they stand in what was sealed."""
        return self._key_ids

    def seal(self, plaintext: bytes, *, row: str) -> bytes:
        """Seal `plaintext` for `row`, such as ``command_keys/<key id>``."""
        fresh = os.urandom(_SALT_BYTES + _NONCE_BYTES)
        key_id = self._key_ids[self._turn.writes]
        header = _FORMAT + key_id + fresh
        return header + _cipher(self._keys[key_id], fresh).encrypt(
            fresh[_SALT_BYTES:], plaintext, header + row.encode()
        )

    def unseal(self, sealed: bytes, *, row: str) -> bytes:
        """Open what `seal` made for the same row.

        Raises:
            SealError: sealed under another key, moved from another row, or changed.
        """
        if len(sealed) < _HEADER_BYTES or sealed[:1] != _FORMAT:
            raise SealError(f"{row} does not hold a sealed value: restore the row from a backup")
        header = sealed[:_HEADER_BYTES]
        key_id = sealed_under(sealed)
        key = self._keys.get(key_id)
        if key is None or (self._turn.alone and key_id != self._key_ids[self._turn.writes]):
            raise SealError(
                f"{row} was sealed under another secret encryption key:"
                " start the server with the FLEET_SECRET_ENCRYPTION_KEY that this database was made with"
            )
        fresh = header[1 + _KEY_ID_BYTES :]
        try:
            return _cipher(key, fresh).decrypt(fresh[_SALT_BYTES:], sealed[_HEADER_BYTES:], header + row.encode())
        except InvalidTag:
            raise SealError(f"{row} was changed since it was sealed: restore the row from a backup") from None


def sealed_under(sealed: bytes) -> bytes:
    """Id of the key under which something was sealed; it is not proven here."""
    return sealed[len(_FORMAT) : len(_FORMAT) + _KEY_ID_BYTES]


class RowMac:
    """HMAC-SHA256 over the fields of a row that confers authority (docs/protocol.md, "Rows that confer authority").

    A row written or edited around the server does not verify. Each table has a key of its own, so a row moves into no
    other table; every field is tagged with its type and prefixed with its length, so no byte moves between fields.

    Args:
        key: key that all tables share.
        table: table name.
        others: keys under which a row verifies as well.
        turn: which of them all marks.
    """

    __slots__ = ("_macs", "_turn")

    def __init__(self, key: bytes, table: str, others: Sequence[bytes] = (), turn: Turn | None = None) -> None:
        self._macs = [HmacSha256(_expand(each, b"row-mac/" + table.encode())) for each in (key, *others)]
        self._turn = turn or Turn()

    def compute(self, *fields: bytes | str | int) -> bytes:
        """32 bytes over `fields`, in order; raises as `frame_fields`."""
        return self.compute_framed(frame_fields(*fields))

    def verify(self, mac: bytes, *fields: bytes | str | int) -> bool:
        """Whether `mac` is `compute(*fields)`; constant time. False, too, for fields that the server never writes:
        SQLite keeps any type in any column, so an edited row may hold text where a number was."""
        try:
            return self.verify_framed(mac, frame_fields(*fields))
        except (TypeError, ValueError, OverflowError):
            return False

    def compute_framed(self, framed: bytes) -> bytes:
        """`compute`, for who has framed the fields already."""
        return self._macs[self._turn.writes].digest(framed)

    def verify_framed(self, mac: bytes, framed: bytes) -> bool:
        """`verify`, for who has framed the fields already."""
        if self._turn.alone:
            return hmac.compare_digest(mac, self._macs[self._turn.writes].digest(framed))
        return any(hmac.compare_digest(mac, each.digest(framed)) for each in self._macs)


class Secrets:
    """Everything derived from the master key.

    Args:
        master: 32 bytes; writes unless `write_under` says otherwise.
        previous: the key that is being replaced, while it is.
    """

    def __init__(self, master: Secret[bytes], previous: Secret[bytes] | None = None) -> None:
        # HKDF-Extract with a fixed salt; all that follows is HKDF-Expand.
        masters = [each.reveal() for each in (master, previous) if each is not None]
        self._roots = [hmac.digest(_INFO + b"extract", each, "sha256") for each in dict.fromkeys(masters)]
        self._turn = Turn()
        self.box = SecretBox(*(_expand(root, b"seal") for root in self._roots), turn=self._turn)
        self._row_keys = [_expand(root, b"row-mac") for root in self._roots]
        self._token_root: bytes | None = None

    @property
    def key_ids(self) -> tuple[bytes, ...]:
        """Ids of the master keys that are held, 8 bytes each, the one that writes first."""
        ids = self.box.key_ids
        if self._turn.alone:
            return (ids[self._turn.writes],)
        return (ids[self._turn.writes], *ids[: self._turn.writes], *ids[self._turn.writes + 1 :])

    def write_under(self, key_id: bytes) -> bool:
        """Seal and mark under that key from now on; False when it is not held, or was given up."""
        if key_id not in self.key_ids:
            return False
        self._turn.writes = self.box.key_ids.index(key_id)
        return True

    def give_up_others(self) -> None:
        """Nothing under another key than the one that writes counts any more, for as long as this process lives."""
        self._turn.alone = True

    def row_mac(self, table: str) -> RowMac:
        """The MAC of one table."""
        first, *others = self._row_keys
        return RowMac(first, table, others, self._turn)

    def row_mac_under(self, key_id: bytes, table: str) -> RowMac | None:
        """The MAC of one table under one key alone, whichever writes; None when that is not held."""
        if key_id not in self.key_ids:
            return None
        return RowMac(self._row_keys[self.box.key_ids.index(key_id)], table)

    @property
    def token_root(self) -> bytes:
        """What `derive` derives from: the master key's own until another was adopted."""
        return self._token_root or _expand(self._roots[self._turn.writes], b"token-root")

    def adopt_token_root(self, root: bytes) -> None:
        """Derive from the root that outlived a change of the master key."""
        self._token_root = root

    def derive(self, purpose: str) -> bytes:
        """32 bytes for `purpose`: the same on every replica, unrelated to those of any other purpose, and the same
        after a change of the master key. On a running server ask once the database's root was adopted."""
        return _expand(self.token_root, purpose.encode())

    def __repr__(self) -> str:
        return "Secrets([secret])"


def frame_fields(*fields: bytes | str | int) -> bytes:
    """What a row's MAC covers: each field with a tag of its type and its length in front, so that nothing moves.

    Raises:
        TypeError: a field is of another type; a fraction above all, which must not pass for the number below it.
        OverflowError: a number does not fit its 8 bytes.
    """
    parts: list[bytes] = []
    for field in fields:
        if isinstance(field, bytes):
            tag, content = b"b", field
        elif isinstance(field, str):
            tag, content = b"s", field.encode()
        elif isinstance(field, int):
            tag, content = b"i", field.to_bytes(8, "big", signed=True)
        else:
            raise TypeError(f"a row's MAC covers no {type(field).__name__}")
        parts += (tag, len(content).to_bytes(4, "big"), content)
    return b"".join(parts)


def _cipher(key: bytes, fresh: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, fresh[:_SALT_BYTES], "sha256"))


def _expand(key: bytes, purpose: bytes) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=32, info=_INFO + purpose).derive(key)
