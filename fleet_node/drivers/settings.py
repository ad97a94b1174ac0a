"""Reads a driver's table of the node's config file: each value typed, bounded, and blamed by its full
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleet_node.drivers.api import DriverConfigError

_REQUIRED: Any = object()


class SettingsTable:
    """One table of settings; every getter removes its key, so that `finish` finds what nobody asked for.

    Args:
        table: as TOML gives it.
        name: full name of the table, such as "drivers.exec".
    """

    def __init__(self, table: Mapping[str, Any], name: str) -> None:
        self._rest = dict(table)
        self._name = name

    def text(self, key: str, default: str = _REQUIRED, *, max_chars: int = 4096) -> str:
        """A string without NUL, at most `max_chars` long. Required when no default is given."""
        value = self._take(key, default)
        if not isinstance(value, str) or "\0" in value or len(value) > max_chars:
            raise self.wrong(key, f"is not a string of at most {max_chars} characters")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "is not true or false")
        return value

    def integer(self, key: str, default: int, *, minimum: int, maximum: int) -> int:
        """A whole number within bounds, both included."""
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.wrong(key, f"is not a whole number from {minimum} to {maximum}")
        return value

    def number(self, key: str, default: float, *, minimum: float, maximum: float) -> float:
        """A number within bounds, both included."""
        value = self._take(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.wrong(key, f"is not a number from {minimum:g} to {maximum:g}")
        return float(value)

    def texts(self, key: str, *, max_items: int, max_chars: int = 4096) -> tuple[str, ...]:
        """A list of strings without NUL; empty when the key is absent."""
        value = self._take(key, [])
        if not isinstance(value, list) or len(value) > max_items:
            raise self.wrong(key, f"is not a list of at most {max_items} strings")
        for item in value:
            if not isinstance(item, str) or "\0" in item or len(item) > max_chars:
                raise self.wrong(key, f"holds something that is not a string of at most {max_chars} characters")
        return tuple(value)

    def table(self, key: str, *, max_items: int) -> Mapping[str, Any]:
        """A table below this one, for its own `SettingsTable`; empty when the key is absent."""
        value = self._take(key, {})
        if not isinstance(value, Mapping) or len(value) > max_items:
            raise self.wrong(key, f"is not a table of at most {max_items} entries")
        return value

    def finish(self) -> None:
        """Refuse settings that nobody read: a misspelt limit must not silently be no limit.

        Raises:
            DriverConfigError: names the first of them.
        """
        for key in sorted(self._rest):
            raise self.wrong(key, "is not a setting of this driver", "Correct its spelling or remove it.")

    def wrong(self, key: str, problem: str, remedy: str = "") -> DriverConfigError:
        """The error to raise about one key."""
        return DriverConfigError(f"{self._name}.{key}", problem, remedy or "Correct it in the node's config file.")

    def _take(self, key: str, default: Any) -> Any:
        value = self._rest.pop(key, default)
        if value is _REQUIRED:
            raise self.wrong(key, "is missing", "Set it in the node's config file.")
        return value
