"""Kinds of values that settings have: each says what is wrong with one that does not do."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from fleet.key_file import parse_public_key, show_public_key
from fleet.tls import split_endpoint

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9._-]{1,250}\Z")
_HASH = re.compile(r"[0-9a-f]{64}\Z")


def _split_list(value: Any) -> Any:
    """`a, b` of an environment variable or flag; a list of the file passes through."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _host(value: str) -> str:
    try:
        ip_address(value)
    except ValueError:
        if not _HOST.match(value):
            raise ValueError("write an address or an ASCII name, an international one as xn--…") from None
    return value


def _listen_address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("write host:port, such as 127.0.0.1:7444; port 0 takes any free one")
    return value


def _optional_listen_address(value: str) -> str:
    return value if value in ("", "off") else _listen_address(value)


def _endpoint(value: str) -> str:
    split_endpoint(value)
    return value


def _wakeup(value: str) -> str:
    if value in ("", "auto", "off", "notify"):
        return value
    parts = [part.strip() for part in value.split(",")]
    scheme, separator, _ = parts[0].partition("://")
    if scheme not in ("nats", "tls") or not separator:
        raise ValueError("write auto, off, notify, or nats://host:port; tls://host:port for NATS over TLS")
    for part in parts:
        address = part.removeprefix(f"{scheme}://")
        if "@" in address:
            raise ValueError("credentials belong in a file, mode 0600, that wakeup_credentials_file names")
        if address == part:
            raise ValueError(f"write every server as {scheme}://host:port")
        split_endpoint(address)
    return ",".join(parts)


def _name(value: str) -> str:
    if not _NAME.match(value):
        raise ValueError("use 1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit")
    return value


def _optional_name(value: str) -> str:
    return value and _name(value)


def _root_key(value: str) -> str:
    return value and show_public_key(parse_public_key(value))


def _leaf_hash(value: str) -> str:
    compact = value.replace(":", "").lower()
    if not _HASH.match(compact):
        raise ValueError("write the SHA-256 of the DER certificate as 64 hexadecimal digits")
    return compact


Listen = Annotated[str, AfterValidator(_listen_address)]
OptionalListen = Annotated[str, AfterValidator(_optional_listen_address)]
Name = Annotated[str, AfterValidator(_name)]
OptionalName = Annotated[str, AfterValidator(_optional_name)]
RootKey = Annotated[str, AfterValidator(_root_key)]
Endpoints = Annotated[
    tuple[Annotated[str, AfterValidator(_endpoint)], ...], NoDecode, BeforeValidator(_split_list), Field(max_length=16)
]
WakeupTransport = Annotated[str, AfterValidator(_wakeup)]
MaybeListen = Annotated[str, AfterValidator(lambda value: value and _listen_address(value))]
Hosts = Annotated[
    tuple[Annotated[str, AfterValidator(_host)], ...],
    NoDecode,
    BeforeValidator(_split_list),
    Field(max_length=32),
]
LeafHashes = Annotated[
    tuple[Annotated[str, AfterValidator(_leaf_hash)], ...], NoDecode, BeforeValidator(_split_list), Field(max_length=16)
]
