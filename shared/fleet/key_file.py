"""A person's Ed25519 key pair in a file under a passphrase: product root, owner and operator keys.

The file is one line with the public key, ``ed25519:`` and base64, which anybody may be shown, and then PKCS#8 PEM
(RFC 5958) encrypted with PBES2, scrypt and AES-256-CBC (RFC 8018, RFC 7914). `cryptography` reads that, but writes
PKCS#8 with 2,048 rounds of PBKDF2 only, half a millisecond a guess; so the envelope is put together here and scrypt
with 128 MiB makes a guess cost a third of a second of one core.

Passphrases come from a callable that is asked when one is needed: never from an argument or the environment, which
other users and crash reports can see.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import ObjectIdentifier

from fleet.envelope import PUBLIC_KEY_BYTES, Signer, is_small_order
from fleet.identity import PrivateFileError, read_private, sync_folder
from fleet.passphrase import passphrase_characters, passphrase_octets
from fleet.secrets import Secret

MIN_PASSPHRASE_CHARACTERS = 12
"""Of a new passphrase. An old one is taken as it is."""
MAX_FILE_BYTES = 4096
SCRYPT_COST = 2**17
"""scrypt's N; with blocks of 8 it takes 128 MiB (RFC 7914, section 2; OWASP's first choice)."""
_SCRYPT_BLOCK = 8
_SCRYPT_LANES = 1
_SALT_BYTES = 16
_CIPHER_KEY_BYTES = 32
_PREFIX = "ed25519:"
_PBES2 = ObjectIdentifier("1.2.840.113549.1.5.13")
_SCRYPT = ObjectIdentifier("1.3.6.1.4.1.11591.4.11")
_AES_256_CBC = ObjectIdentifier("2.16.840.1.101.3.4.1.42")

AskPassphrase = Callable[[], Secret[str]]
"""Asks the person; called once a file, only when the passphrase is needed."""


class KeyFileError(Exception):
    """A key file cannot be made or used. The message names the file and says what to do."""


class KeyFileExistsError(KeyFileError):
    """There is something at the path already; a key is never overwritten."""


class WeakPassphraseError(KeyFileError):
    """A new passphrase is too short."""


class WrongPassphraseError(KeyFileError):
    """The passphrase does not open the file."""


class ExposedKeyFileError(KeyFileError):
    """The file is missing, no plain file, not ours, or open to other users."""


class NotAKeyFileError(KeyFileError):
    """The file holds no encrypted private key, or is damaged."""


class WrongKeyTypeError(KeyFileError):
    """The file holds a private key of another kind than Ed25519."""


def show_public_key(public_key: bytes) -> str:
    """``ed25519:`` and the base64 of the raw 32 bytes: how public keys of people stand in files and settings."""
    return _PREFIX + base64.b64encode(public_key).decode()


def parse_public_key(text: str) -> bytes:
    """Inverse of `show_public_key`; white space around it does not matter.

    Raises:
        ValueError: it is no public key, or one under which anybody can sign.
    """
    prefix, _, rest = text.strip().partition(":")
    try:
        raw = base64.b64decode(rest, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(_not_a_public_key()) from error
    if f"{prefix}:" != _PREFIX or len(raw) != PUBLIC_KEY_BYTES or is_small_order(raw):
        raise ValueError(_not_a_public_key())
    return raw


def create_key_file(path: Path, ask_passphrase: AskPassphrase, *, scrypt_cost: int = SCRYPT_COST) -> Signer:
    """Make a key pair and store it, 0600, durable before it returns.

    Args:
        path: must not exist yet.
        ask_passphrase: gives the new passphrase, at least `MIN_PASSPHRASE_CHARACTERS` long.
        scrypt_cost: scrypt's N; less only in tests.

    Raises:
        KeyFileExistsError: something is there.
        WeakPassphraseError: the passphrase is too short; nothing was written.
        KeyFileError: it cannot be written.
    """
    if path.is_symlink() or path.exists():
        raise _exists(path)
    passphrase = ask_passphrase()
    if passphrase_characters(passphrase) < MIN_PASSPHRASE_CHARACTERS:
        raise WeakPassphraseError(
            f"a passphrase needs at least {MIN_PASSPHRASE_CHARACTERS} characters: choose a longer one"
        )
    private = Ed25519PrivateKey.generate()
    signer = Signer(private)
    header = show_public_key(signer.public_key) + "\n"
    _write_new(path, header.encode() + _encrypted_pem(private, passphrase_octets(passphrase), scrypt_cost))
    return signer


def load_key_file(path: Path, ask_passphrase: AskPassphrase) -> Signer:
    """Open a key file that `create_key_file` made.

    Raises:
        ExposedKeyFileError, NotAKeyFileError, WrongKeyTypeError, WrongPassphraseError: as they say; the first
            before the person is asked for anything.
    """
    content = _read(path)
    public_key = _public_half(path, content)
    try:
        private = load_pem_private_key(content, passphrase_octets(ask_passphrase()))
    except (ValueError, TypeError) as error:
        # The library tells "cannot parse" from "cannot decrypt" in prose alone, and an empty passphrase by a TypeError.
        # The header has been checked, so a wrong passphrase is by far the likelier.
        raise WrongPassphraseError(
            f"{path} does not open: type its passphrase again; if it is right, restore the file from a backup"
        ) from error
    except (UnsupportedAlgorithm, MemoryError) as error:
        raise _not_a_key_file(path) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise WrongKeyTypeError(f"{path} holds no Ed25519 key: name a file that fleetctl's keygen made")
    signer = Signer(private)
    if signer.public_key != public_key:
        raise NotAKeyFileError(
            f"{path} shows another public key than it holds: it was tampered with; restore it from a backup"
        )
    return signer


def read_public_key(path: Path) -> bytes:
    """The raw public key of a key file; no passphrase is asked for.

    Only `load_key_file` proves that the private key belongs to it.

    Raises:
        ExposedKeyFileError, NotAKeyFileError: as they say.
    """
    return _public_half(path, _read(path))


@asn1.sequence
class _ScryptParameters:
    salt: bytes
    cost: int
    block_size: int
    parallelization: int


@asn1.sequence
class _KeyDerivation:
    algorithm: ObjectIdentifier
    parameters: _ScryptParameters


@asn1.sequence
class _Encryption:
    algorithm: ObjectIdentifier
    initialization_vector: bytes


@asn1.sequence
class _Pbes2Parameters:
    key_derivation: _KeyDerivation
    encryption: _Encryption


@asn1.sequence
class _Algorithm:
    algorithm: ObjectIdentifier
    parameters: _Pbes2Parameters


@asn1.sequence
class _EncryptedPrivateKeyInfo:
    algorithm: _Algorithm
    encrypted: bytes


def _encrypted_pem(private: Ed25519PrivateKey, passphrase: bytes, cost: int) -> bytes:
    salt, vector = os.urandom(_SALT_BYTES), os.urandom(algorithms.AES.block_size // 8)
    key = Scrypt(salt, _CIPHER_KEY_BYTES, cost, _SCRYPT_BLOCK, _SCRYPT_LANES).derive(passphrase)
    padder = PKCS7(algorithms.AES.block_size).padder()
    plain = padder.update(private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(vector)).encryptor()
    derivation = _KeyDerivation(
        algorithm=_SCRYPT,
        parameters=_ScryptParameters(salt=salt, cost=cost, block_size=_SCRYPT_BLOCK, parallelization=_SCRYPT_LANES),
    )
    encryption = _Encryption(algorithm=_AES_256_CBC, initialization_vector=vector)
    envelope = _EncryptedPrivateKeyInfo(
        algorithm=_Algorithm(
            algorithm=_PBES2, parameters=_Pbes2Parameters(key_derivation=derivation, encryption=encryption)
        ),
        encrypted=encryptor.update(plain) + encryptor.finalize(),
    )
    body = base64.b64encode(asn1.encode_der(envelope)).decode()
    lines = [body[i : i + 64] for i in range(0, len(body), 64)]
    label = "ENCRYPTED PRIVATE KEY"
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _write_new(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise KeyFileError(f"cannot write {path}: {error.strerror}; nothing was kept") from error


def _read(path: Path) -> bytes:
    try:
        return read_private(path)
    except PrivateFileError as error:
        raise ExposedKeyFileError(str(error)) from error


def _public_half(path: Path, content: bytes) -> bytes:
    header, newline, rest = content.partition(b"\n")
    try:
        public_key = parse_public_key(header.decode("ascii"))
    except ValueError as error:
        raise _not_a_key_file(path) from error
    if len(content) > MAX_FILE_BYTES or not newline or not rest.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"):
        raise _not_a_key_file(path)
    return public_key


def _exists(path: Path) -> KeyFileExistsError:
    return KeyFileExistsError(f"{path} exists: choose another path, or move that file away")


def _not_a_key_file(path: Path) -> NotAKeyFileError:
    return NotAKeyFileError(f"{path} is no whole key file: name one that fleetctl's keygen made, or restore it")


def _not_a_public_key() -> str:
    return f"a public key is written {_PREFIX} and 44 characters of base64, as keygen prints it"
