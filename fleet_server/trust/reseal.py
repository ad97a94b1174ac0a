"""Seal and mark the rows of a table anew under another secret encryption key, a bounded batch at a time.

A row that is under the new key already is passed over, so a walk may begin again at any time. A row that verifies under
neither key is left as it is, for it would be refused anyway: making it good is what somebody who edited it would want.
What a server changes at the same moment is left to the next walk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleet_server.database.engine import Connection
from fleet_server.database.marked import MarkedTable
from fleet_server.trust.reseal_store import rows_after, update_unchanged
from fleet_server.trust.secrets import RowMac, SealError, Secrets, sealed_under


@dataclass(frozen=True, slots=True)
class Batch:
    """What one batch came to.

    Args:
        last: key of its last row; None when there was none left.
        seen: rows looked at.
        done: rows sealed or marked anew.
        missed: rows that a server changed meanwhile, or that are yet to be done.
        refused: rows that verify under neither key, by name.
    """

    last: tuple[Any, ...] | None = None
    seen: int = 0
    done: int = 0
    missed: int = 0
    refused: tuple[str, ...] = ()


class TableWalk:
    """One table under a change of keys.

    Args:
        table: which.
        old: the key that ends.
        new: the key that begins.
    """

    def __init__(self, table: MarkedTable, old: Secrets, new: Secrets) -> None:
        self.name = table.name
        self._table = table
        self._old, self._new = old, new
        self._old_mac, self._new_mac = old.row_mac(table.name), new.row_mac(table.name)
        extra = (table.sealed,) if table.sealed else ()
        named = [part.split("}")[0] for part in table.place.split("{")[1:]]
        mac = ("mac",) if table.covered else ()
        self._columns = tuple(dict.fromkeys((*table.key, *table.covered, *extra, *named, *mac)))

    def batch(self, conn: Connection, after: tuple[Any, ...] | None, limit: int) -> Batch:
        """Do the next rows after a key.

        Args:
            after: key of the last row of the batch before; None to begin.
            limit: at most so many rows.
        """
        rows = rows_after(conn, self._table, self._columns, after, limit)
        done, missed, refused = 0, 0, []
        for row in rows:
            try:
                changed = self._changed(row)
            except SealError:
                refused.append(self._named(row))
                continue
            if changed is None:
                continue
            if update_unchanged(conn, self._table, row, changed):
                done += 1
            else:
                missed += 1
        last = tuple(rows[-1][name] for name in self._table.key) if rows else None
        return Batch(last, len(rows), done, missed, tuple(refused))

    def _changed(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """New values of columns; None when nothing has to be done.

        Raises:
            SealError: the row verifies, or opens, under neither key.
        """
        table = self._table
        if not table.covered:
            return self._resealed(row)
        marked = _verifies(self._new_mac, row, table)
        if not marked and not _verifies(self._old_mac, row, table):
            raise SealError(self._named(row))
        sealed = self._resealed(row) or {}
        if marked and not sealed:  # a server may have marked anew what it had read sealed as before
            return None
        after = {**row, **sealed}
        return {**sealed, "mac": self._new_mac.compute(*_fields(after, table))}

    def _resealed(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        column = self._table.sealed
        value = row[column] if column else b""
        if not value:
            return None
        if not isinstance(value, bytes):
            raise SealError(self._named(row))
        place = self._table.place.format(**{name: _word(found) for name, found in row.items()})
        if sealed_under(value) == self._new.key_ids[0]:
            self._new.box.unseal(value, row=place)
            return None
        return {column: self._new.box.seal(self._old.box.unseal(value, row=place), row=place)}

    def _named(self, row: Mapping[str, Any]) -> str:
        return "/".join([self.name, *(str(_word(row[name])) for name in self._table.key)])


def _verifies(mac: RowMac, row: Mapping[str, Any], table: MarkedTable) -> bool:
    return mac.verify(row["mac"], *_fields(row, table))


def _fields(row: Mapping[str, Any], table: MarkedTable) -> Sequence[Any]:
    return [b"" if row[name] is None else row[name] for name in table.covered]


def _word(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
