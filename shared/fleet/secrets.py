"""`Secret`: a value that never prints, so that no log line, traceback or dump gives it away by accident."""

from __future__ import annotations

import hmac
from typing import Generic, NoReturn, TypeVar

Material = TypeVar("Material", str, bytes)

MASK = "[secret]"
"""What a secret looks like wherever something tries to print it."""


class Secret(Generic[Material]):
    """Wraps key material, tokens and passwords.

    Printing, formatting, logging and JSON give `[secret]`; pickling is refused; comparison takes constant
    time. It cannot be
    hashed: a lookup by secret would leak it through its timing, so look up by a digest or an id instead.
        Reading it takes an explicit `reveal()`, which a reviewer can search for.
    """

    __slots__ = ("_material",)

    def __init__(self, material: Material) -> None:
        if not isinstance(material, (str, bytes)):
            raise TypeError("a Secret wraps str or bytes")
        self._material: Material = material

    def reveal(self) -> Material:
        """The material itself. Hand it straight to what needs it; keep no copy."""
        return self._material

    def __repr__(self) -> str:
        return MASK

    def __format__(self, format_spec: str) -> str:
        # Any format spec: padding to a width would tell nothing, but `{secret:.4}` must not cut the mask
        # into something misread.
        return MASK

    def __structlog__(self) -> str:
        """What structlog's JSON renderer shows."""
        return MASK

    def __eq__(self, other: object) -> bool:
        """Equal material of one type, in time that depends on lengths alone: no guessing byte by byte."""
        if not isinstance(other, Secret) or type(other._material) is not type(self._material):
            return NotImplemented
        return hmac.compare_digest(_octets(self._material), _octets(other._material))

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied: pass the object, or reveal() where it is used")


def _octets(material: str | bytes) -> bytes:
    return material.encode("utf-8", "surrogatepass") if isinstance(material, str) else material
