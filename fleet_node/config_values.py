"""What a setting may hold: each kind checks a value from the file, and reads one from text (environment, option)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fleet.envelope import PUBLIC_KEY_BYTES
from fleet.globs import is_glob
from fleet.identity import NODE_NAME, parse_fingerprint
from fleet.tls import split_endpoint

T = TypeVar("T")

_NODE_ID = re.compile(r"nd_[a-z2-7]{1,61}")
_LABEL_KEY = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9._:/-]{0,63}")
MAX_LABELS = 32
MAX_ENDPOINTS = 32
MAX_GLOBS = 64
MAX_PEER_ENDPOINTS = 256
MAX_PROBE_ENDPOINTS = 4
MAX_PROBE_ENDPOINT_CHARS = 261
"""A host name of 255, a colon, a port; the server takes no more (docs/protocol.md, "Limits")."""
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of value.

    Args:
        wanted: completes the sentence "it must be ...".
        check: from what TOML gives to what the program uses; ValueError or TypeError when it is something else.
        from_text: from text to what TOML would have given; ValueError when the text is no such thing.
        spelled: how an example stands in the file.
    """

    wanted: str
    check: Callable[[Any], T]
    from_text: Callable[[str], Any]
    spelled: str


def folder() -> Kind[Path]:
    """An absolute path; `~` is the user's home."""

    def check(value: Any) -> Path:
        path = os.path.expanduser(_text(value))
        if not os.path.isabs(path) or "\0" in path:
            raise ValueError
        return Path(path)

    return Kind("an absolute path", check, str, '"/var/lib/fleet-node"')


def node_name() -> Kind[str]:
    """A node's name (fleet.v1.EnrollStatement)."""
    return Kind("1 to 63 characters of a-z, 0-9 and -", lambda v: _matching(v, NODE_NAME), str, '"pump-house-3"')


def labels() -> Kind[Mapping[str, str]]:
    """Reported labels."""

    def check(value: Any) -> Mapping[str, str]:
        if not isinstance(value, Mapping) or len(value) > MAX_LABELS:
            raise ValueError
        return {_matching(key, _LABEL_KEY): _matching(each, _LABEL_VALUE) for key, each in value.items()}

    return Kind(
        f"a table of at most {MAX_LABELS} labels: keys of a-z, 0-9, . _ / and -, values of at most 63 letters, digits, "
        ". _ : / and -",
        check,
        lambda text: dict(_pair(part) for part in _parts(text)),
        '{ rack = "b4" }',
    )


def endpoints() -> Kind[tuple[str, ...]]:
    """Gateways."""

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > MAX_ENDPOINTS:
            raise ValueError
        for endpoint in value:
            split_endpoint(_text(endpoint))
        return tuple(value)

    return Kind("a list of host:port, IPv6 addresses in brackets", check, _parts, '["gw.example.com:7443"]')


def action_globs() -> Kind[tuple[str, ...]]:
    """Globs over action names."""

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > MAX_GLOBS or not all(is_glob(_text(glob)) for glob in value):
            raise ValueError
        return tuple(value)

    wanted = f"a list of at most {MAX_GLOBS} action names of a-z, 0-9, . _ and -, in which * stands for any characters"
    return Kind(wanted, check, _parts, '["exec.*"]')


def public_key() -> Kind[bytes]:
    """A raw Ed25519 public key."""

    def check(value: Any) -> bytes:
        key = bytes.fromhex(_text(value))
        if len(key) != PUBLIC_KEY_BYTES:
            raise ValueError
        return key

    return Kind("64 hexadecimal digits", check, str, '"9f86d0...0a08"')


def fingerprint() -> Kind[bytes]:
    """A node's fingerprint as `fleet-node enroll` shows it."""
    return Kind("a fingerprint: 8 groups of 4 characters", lambda v: parse_fingerprint(_text(v)), str, '"ABCD-..."')


def number(minimum: float, maximum: float, spelled: str) -> Kind[float]:
    """A number within bounds, both included."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value <= maximum:
            raise ValueError
        return float(value)

    def from_text(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError
        return value

    return Kind(f"a number from {minimum:g} to {maximum:g}", check, from_text, spelled)


def whole(minimum: int, maximum: int, spelled: str) -> Kind[int]:
    """A whole number within bounds, both included."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError
        return value

    return Kind(f"a whole number from {minimum} to {maximum}", check, int, spelled)


def flag() -> Kind[bool]:
    """Yes or no."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value

    def from_text(text: str) -> bool:
        if text.lower() not in _WORDS:
            raise ValueError
        return _WORDS[text.lower()]

    return Kind("true or false", check, from_text, "true")


def one_of(words: tuple[str, ...], spelled: str) -> Kind[str]:
    """One of some words."""

    def check(value: Any) -> str:
        if _text(value) not in words:
            raise ValueError
        return str(value)

    return Kind(f"one of {', '.join(words)}", check, str, spelled)


def probe_endpoints() -> Kind[tuple[str, ...]]:
    """Where other nodes reach this one."""

    def check(value: Any) -> tuple[str, ...]:
        reached_at = endpoints().check(value)
        if len(reached_at) > MAX_PROBE_ENDPOINTS or any(len(each) > MAX_PROBE_ENDPOINT_CHARS for each in reached_at):
            raise ValueError
        return reached_at

    wanted = f"a list of at most {MAX_PROBE_ENDPOINTS} host:port, IPv6 addresses in brackets"
    return Kind(wanted, check, _parts, '["10.1.2.3:9470"]')


def peer_endpoints() -> Kind[Mapping[str, str]]:
    """Where this node calls peers, by node id."""

    def check(value: Any) -> Mapping[str, str]:
        if not isinstance(value, Mapping) or len(value) > MAX_PEER_ENDPOINTS:
            raise ValueError
        for endpoint in value.values():
            split_endpoint(_text(endpoint))
        return {_matching(node_id, _NODE_ID): endpoint for node_id, endpoint in value.items()}

    return Kind(
        f"a table of at most {MAX_PEER_ENDPOINTS} node ids, each with the host:port to call",
        check,
        lambda text: dict(_pair(part) for part in _parts(text)),
        '{ nd_225kahobbjvqfwhvetlb6vqm = "10.1.2.3:9470" }',
    )


def listen_address(spelled: str) -> Kind[str]:
    """Where to listen; empty for nowhere. Port 0 takes a free one."""

    def check(value: Any) -> str:
        text = _text(value)
        if text:
            host, _, port = text.rpartition(":")
            if port != "0":
                split_endpoint(text)
            else:
                split_endpoint(f"{host}:1")
        return text

    return Kind('host:port, or "" for off', check, str, spelled)


def words() -> Kind[tuple[str, ...]]:
    """A list of drivers' names."""

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise ValueError
        return tuple(value)

    return Kind("a list of names", check, _parts, '["host", "exec"]')


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _matching(value: Any, pattern: re.Pattern[str]) -> str:
    if pattern.fullmatch(_text(value)) is None:
        raise ValueError
    return str(value)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError
    return key.strip(), value.strip()


def nearest_name(name: str, known: Iterable[str], cutoff: float) -> str:
    """The known name that somebody may have meant; empty when none is that alike.

    Args:
        cutoff: how alike, from 0 to 1, as `difflib` counts.
    """
    import difflib  # for mistakes alone: what the daemon loads is a promise (docs/performance.md, A7)

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), "")
