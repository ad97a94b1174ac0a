"""What is taken out of a log event before it is written: the last line of defence, behind `Secret`.

Fields are judged by name, text by the shape of what our own tokens look like; bytes never print. Everything
is bounded, since a stranger chooses some of the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from fleet.secrets import MASK, Secret

MAX_TEXT_CHARS = 2_048
"""Longer field texts are cut."""

MAX_TRACEBACK_CHARS = 16_384
"""Longer tracebacks are cut."""

_MAX_ITEMS = 64
_MAX_DEPTH = 6

_SECRET_NAME = re.compile(
    r"token|api_?key|secret|private|passw|passphrase|credential|authorization|cookie|seed", re.IGNORECASE
)
# What says something about a secret without being one: `token_id`, `session_token_sha256`, `tokens_left`,
# `secret_age_s`.
_HARMLESS_NAME = re.compile(
    r"_(id|ids|sha256|digest|count|left|used|kind|state|reason|expiry|(expires|created|used)_at(_ms)?|age_s|ms|s)$"
)
_SECRET_TEXT = re.compile(
    r"(?P<scheme>\bbearer\s+)\S+"  # an authorization header
    r"|(?P<token>\bf[a-z]{2}1\.)[A-Za-z0-9_=.-]+"  # our own tokens: fjt1. and its kin
    r"|(?P<userinfo>://[^\s/:@]*:)[^\s/@]+(?=@)"  # the password of a URL
    r"|(?P<pem>-----BEGIN [A-Z ]*PRIVATE KEY-----)[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.IGNORECASE,
)
_UNPRINTED = frozenset({"exception", "stack"})


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: mask what must not be written. Runs last before rendering, and sees all."""
    for name, value in event.items():
        limit_chars = MAX_TRACEBACK_CHARS if name in _UNPRINTED else MAX_TEXT_CHARS
        event[name] = _clean(name, value, limit_chars, depth=0)
    return event


def escape_controls(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor for terminals: control characters come out as `\\x1b`."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable(value, keep="\n" if name in _UNPRINTED else "")
    return event


def _clean(name: str, value: Any, limit_chars: int, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Secret) or (_SECRET_NAME.search(name) and not _HARMLESS_NAME.search(name)):
        return MASK
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return _clean_items(name, value, limit_chars, depth + 1)
    return _clean_text(str(value), limit_chars)


def _clean_items(name: str, value: Any, limit_chars: int, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return "<nested too deep to log>"
    if isinstance(value, Mapping):
        pairs = list(value.items())[:_MAX_ITEMS]
        return {str(key): _clean(str(key), item, limit_chars, depth) for key, item in pairs}
    return [_clean(name, item, limit_chars, depth) for item in list(value)[:_MAX_ITEMS]]


def _clean_text(text: str, limit_chars: int) -> str:
    # Cut first, so that the search is bounded; the extra keeps a secret that straddles the cut recognisable.
    text = _SECRET_TEXT.sub(_mask, text[: 2 * limit_chars])
    return text if len(text) <= limit_chars else f"{text[:limit_chars]}… [cut]"


def _mask(match: re.Match[str]) -> str:
    kept = next(group for group in match.groups() if group is not None)
    return f"{kept}{MASK}"


def printable(text: str, *, keep: str = "") -> str:
    """`text` with control characters made visible; those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )
